"""The attention explorer in a running notebook: an anywidget, and a field for a reader's text.

Imported where it is used, since it needs the extra ``viz``.
"""

from html import escape

from mha._extras import require
from mha.viz.explorer import TRAITS, AttentionExplorer
from mha.viz.live_page import joined

anywidget = require("anywidget", "viz")
ipywidgets = require("ipywidgets", "viz")  # anywidget brings these two
traitlets = require("traitlets", "viz")


class LiveExplorer(anywidget.AnyWidget):
    """The state of an `AttentionExplorer`, shared with the script; None stands for no token."""

    _esm = joined(AttentionExplorer.scripts) + "export default { render };\n"
    _css = joined(AttentionExplorer.styles)
    data = traitlets.Dict().tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    head = traitlets.Int().tag(sync=True)
    query = traitlets.Int(None, allow_none=True).tag(sync=True)
    key = traitlets.Int(None, allow_none=True).tag(sync=True)
    step = traitlets.Int().tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)
    example = traitlets.Int().tag(sync=True)

    def __init__(self, explorer, data, state):
        self.explorer = explorer
        super().__init__(data=data, **state)

    @traitlets.validate(*TRAITS)
    def _check(self, proposal):
        return self.explorer.check(proposal["trait"].name, proposal["value"])

    def put(self, changes: dict) -> None:
        """Set several traits at once, in one message."""
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in changes.items():
                setattr(self, name, value)


def with_field(live: LiveExplorer, explorer):
    """The explorer below a field whose text it shows; an error stands below the field."""
    field = ipywidgets.Text(
        description=f"your own {live.data['label']}",
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "95%"},
    )
    said = ipywidgets.HTML()

    def look(_):
        said.value = ""
        if not field.value.strip():
            return
        try:
            explorer.show(field.value)
        except Exception as error:  # whatever it is, the reader must see it: nobody else would
            said.value = f'<p role="alert">{type(error).__name__}: {escape(str(error))}</p>'

    field.observe(look, names="value")
    return ipywidgets.VBox([field, said, live])
