"""Arguments, errors, files, plots and the environment: nothing here knows BERT."""
