"""The command serve."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nsfse.cli.arguments import BundleOption, DeviceOption, ProviderOption, ProviderSettings, provider_options


def serve(
    gallery: Annotated[list[str], typer.Option("-g", "--gallery", help="[NAME=]GALLERY, a file or a URL. Repeatable.")],
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with tokens that open every route, one a line; else NSFSE_TOKEN.")
    ] = None,
    read_token_file: Annotated[
        Path | None,
        typer.Option(help="A file with tokens that open all but changes, one a line; else NSFSE_READ_TOKEN."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may use it (CORS): https://shop.example. Repeatable."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PREFIX", help="The prefix under which a proxy serves it: /images.")
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name that the server is called by. Repeatable.")
    ] = None,
    bundle: BundleOption = None,
    queue: Annotated[int, typer.Option(min=1, help="How many queries may wait.")] = 64,
    per_client: Annotated[int, typer.Option(min=0, help="How many of one address; 0 for no such limit.")] = 32,
    batch: Annotated[int, typer.Option(min=1, max=64, help="How many queries are answered at a time, at most.")] = 16,
    deadline: Annotated[float, typer.Option(min=0.1, help="After how many seconds a query is given up.")] = 10,
    shutdown_delay: Annotated[
        float, typer.Option(min=0, help="Seconds to go on after a signal to stop, not ready, for a balancer to notice.")
    ] = 0,
    traces: Annotated[
        bool, typer.Option("--traces", help="Send OpenTelemetry traces, by default to a collector on this machine.")
    ] = False,
    device: DeviceOption = None,
    provider: ProviderOption = None,
    provider_option: ProviderSettings = None,
) -> None:
    """Serve galleries over HTTP, with a search page.

    \b
    Examples:
      nsfse serve -g my.gallery
      nsfse serve -g shoes=shoes.gallery -g bags=bags.gallery --port 8080
    """
    from nsfse.open import need_server, open_services, resolve_device

    need_server()
    from nsfse_runtime.server.serve import listen, run, url_of
    from nsfse_runtime.server.settings import Settings, load_tokens

    settings = Settings(
        host=host,
        port=port,
        write_tokens=load_tokens(token_file, "NSFSE_TOKEN"),
        read_tokens=load_tokens(read_token_file, "NSFSE_READ_TOKEN"),
        allow_origins=tuple(allow_origin or ()),
        root_path=root_path.rstrip("/"),
        allow_hosts=tuple(allow_host or ()),
        queue=queue,
        per_client=per_client,
        batch=batch,
        deadline=deadline,
        shutdown_delay=shutdown_delay,
        traces=traces,
    )
    service = open_services(
        gallery, bundle, resolve_device(device, provider, provider_options(provider_option)), settings
    )
    with listen(service.settings) as listener:
        typer.echo(url_of(listener))
        sys.stdout.flush()
        run(service, listener)
