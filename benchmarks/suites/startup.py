"""Start-up: imports, the command line, and loading a model, in processes of their own."""

from harness.cells import Cell, Options


TITLE = "Start-up"
ABOUT = """\
Every sample is a process of its own; files are in the system's cache. *Import* and *command line* are whole processes:
`import transformers, open_clip_transformers` beside `import transformers` and `import open_clip`, and
`open-clip-transformers --help` beside `import transformers`. *Import and load* is the whole process that also loads a
model, with `AutoModel` or open_clip's `create_model`.

*Load* is the call alone, once everything is imported: `OpenClipModel.from_pretrained` beside transformers'
`CLIPModel.from_pretrained` and open_clip's `create_model`, of the same fp32 weights (transformers' were written with
`--target native`). *Load and encode* goes on to the features of an image and a text, for weights that are only read
when they are used. There, *memory* is the most that the call added to the process; of whole processes it is all."""

MODELS = ("ViT-B-32", "ViT-L-14")
PEERS = ("transformers", "open_clip")
# As fast as transformers' own model of that size, or as open_clip.
GOAL = 1.0


def cells(options: Options) -> list[Cell]:
    """The cells of whole processes, then of loads of a model; on a CPU."""
    if options.device != "cpu":
        return []
    models = MODELS[:1] if options.quick else MODELS
    goal = None if options.quick else GOAL
    rows = [
        _cell("Import", {"task": "import"}, PEERS, goal, "open_clip"),
        _cell("Command line, --help", {"task": "help"}, ("transformers",), None, None),
    ]
    tasks = {"process": "Import and load", "load": "Load", "encode": "Load and encode"}
    return rows + [
        _cell(
            f"{label} {model}",
            {"task": task, "model": model, "reduced": options.quick},
            PEERS,
            goal,
            "open_clip" if task == "process" else "transformers",
        )
        for model in models
        for task, label in tasks.items()
    ]


def _cell(name: str, settings: dict, peers: tuple[str, ...], goal: float | None, reference: str | None) -> Cell:
    return Cell(
        suite="startup",
        name=name,
        settings=settings,
        contestants=("ours", *peers),
        unit="starts",
        goal=goal,
        reference=reference,
        group="startup",
    )
