"""Read task data from files and the Hub: tables, tagged words, SQuAD's JSON."""
