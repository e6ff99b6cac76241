# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Build a pretraining corpus from your own text.

    hfbert corpus --text data/*.txt --tokenizer runs/tokenizer --output_dir runs/corpus --num_proc 8

reads the same sources as `hfbert tokenizer` and leaves a directory that `datasets.load_from_disk` opens, with
manifest.json beside the splits: its content, and the results of a model that only knows token frequencies.
The same command continues an interrupted build. On several hosts with a shared file system, run it on each, with
--num_hosts and --host_index, or under a launcher that sets WORLD_SIZE and RANK.

Supports: text of any size in bounded memory, several processes and hosts with the same result, removal of exact
duplicates, a validation split by document, corpora without next-sentence pairs (--no_nsp), your own function that
splits text into sentences (--sentence_splitter).
Does not support: near-duplicate removal, language or quality filters.
"""

import dataclasses
import os

from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.build import build_corpus
from hfbert_scratch.corpus.statistics import corpus_lines
from hfbert_scratch.text.sentences import load_splitter, split_sentences
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


@dataclasses.dataclass(kw_only=True)
class CorpusArguments(BuildArguments):
    """The command line."""

    output_dir: str = argument(help="directory for the corpus: new, or that of an interrupted build")
    num_proc: int = argument(1, help="processes that split and tokenize")
    num_hosts: int = argument(int(os.environ.get("WORLD_SIZE", 1)), help="hosts that build together")
    host_index: int = argument(int(os.environ.get("RANK", 0)), help="number of this host, from 0")
    sentence_splitter: str | None = argument(
        None, help="MODULE:FUNCTION of yours, text → list of sentences, found from this directory; default: built in"
    )


@command_line
def main() -> None:
    """Build, check, report."""
    arguments = parse_arguments(CorpusArguments, description=__doc__)
    corpus = build_corpus(
        arguments,
        load_tokenizer(arguments.tokenizer),
        arguments.output_dir,
        num_proc=arguments.num_proc,
        num_hosts=arguments.num_hosts,
        host_index=arguments.host_index,
        segmenter=load_splitter(arguments.sentence_splitter) if arguments.sentence_splitter else split_sentences,
    )
    if corpus is None:
        return
    for warning in corpus.manifest["warnings"]:
        print(f"warning: {warning}")
    for line in corpus_lines(corpus.manifest):
        print(line)
    print(f"corpus: {arguments.output_dir}")


if __name__ == "__main__":
    main()
