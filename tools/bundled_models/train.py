"""Train one of the two models: `python -m tools.bundled_models.train sketch --latents ...`."""

import argparse
from pathlib import Path

import torch

from .attention import write_out_attention
from .batches import LatentBatches
from .flux_model import FluxModel
from .peers import Peers
from .sketch_model import SketchModel
from .training import Plan, Training, train

MODELS = {"sketch": SketchModel, "sketch-flux": FluxModel}


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--latents", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint and log go here")
    parser.add_argument("--init", type=Path, help="an assembled folder to begin with")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0, help="this process's number among peers")
    parser.add_argument("--peers", type=int, default=1, help="processes that train together")
    for name, kind in Plan.__annotations__.items():
        default = getattr(Plan, name, None)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=default, required=default is None)
    return parser.parse_args()


def main() -> None:
    """Build or resume the model and train it to the last step."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        write_out_attention()
    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__annotations__})
    torch.manual_seed(plan.seed)
    model = MODELS[arguments.model](arguments.tokenizers, arguments.init)
    model.to(device, memory_format=torch.channels_last)
    peers = Peers(arguments.rank, arguments.peers)
    training = Training(model, plan, arguments.out, device, peers)
    peers.meet(arguments.out)
    if arguments.resume:
        training.resume()
    batches = LatentBatches(arguments.latents, plan.batch)
    train(training, batches)


if __name__ == "__main__":
    main()
