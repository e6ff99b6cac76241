# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch[app]==0.1.0"]
# ///
"""Try a checkpoint in the browser: a page with a tab for everything that its head can do.

    hfbert app --model runs/demo/pretraining/model

Fills in blanks, says whether a sentence follows another, classifies, finds entities, answers questions: what the
checkpoint has a head for. For every checkpoint: attention of each layer and head, and similarity of sentences. The
page is served to this machine alone unless --host names another address. Nothing is sent anywhere. Needs Gradio: pip
install hfbert-scratch[app]

Supports: our checkpoints and stock bert ones, with every head.
Does not support: a GPU (a sentence takes milliseconds on a CPU); multiple choice, beside attention and similarity.
"""

from dataclasses import dataclass

import transformers

from hfbert_scratch.app.checkpoint import open_checkpoint
from hfbert_scratch.app.page import build_page, serve
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


@dataclass(kw_only=True)
class AppArguments:
    """The command line."""

    model: str = argument(help="Directory of the checkpoint, or its name on the Hub")
    host: str = argument("127.0.0.1", help="Address to listen on; 0.0.0.0 shows the page to the network")
    port: int = argument(7860, help="Port to listen on", at_least=1, at_most=65535)


@command_line
def main() -> None:
    """Open the checkpoint, build the page, serve it until interrupted."""
    arguments = parse_arguments(AppArguments, description=__doc__)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    serve(build_page(open_checkpoint(arguments.model)), arguments.host, arguments.port)


if __name__ == "__main__":
    main()
