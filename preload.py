"""Options that Stable-Diffusion-WebUI takes for BFR Adapt; WebUI reads this file before it reads its command line."""


def preload(parser):
    parser.add_argument(
        "--bfr-allow",
        action="append",
        default=[],
        metavar="DIR",
        help="BFR Adapt: a folder that may be named on its page; may be given several times",
    )
