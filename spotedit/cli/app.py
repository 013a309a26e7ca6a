"""`spotedit app` opens a page in which people edit their photographs."""

from ..editor.editor import Editor
from ..editor.errors import Failure
from .commands import AppOptions


def run(options: AppOptions) -> None:
    """Load the model and serve the page until the user interrupts it.

    Raises:
        BadInput, Failure: see `spotedit.cli.main`.
    """
    try:
        import gradio  # noqa: F401, found missing before the model is loaded
    except ImportError as error:
        raise Failure(f'Gradio is missing ({error}): pip install "spotedit[app]"') from error
    from ..app.desk import Desk
    from ..app.launch import launch
    from ..app.page import create_app

    settings = options.editor_settings(options.model)
    print(f"spotedit app: loading {options.model}", flush=True)
    with Editor(settings) as editor:
        desk = Desk(editor)
        app = create_app(desk, seed=options.pipeline.seed)
        try:
            launch(app, options.host, options.port, options.share, options.open)
        finally:
            desk.close()  # the editor cannot be closed while it edits
