"""Checks finder and audit on models that people use, and writes COVERAGE.md: ``python scripts/audit_models.py``.

Takes minutes and the extras dev and vision; downloads nothing. With names, as in ``python scripts/audit_models.py
timm/resnet18 hf/BertForMaskedLM@sdpa``, it checks these and writes nothing.

Each model is built with a rate of 0.3 wherever its constructor takes one, then held to what the sites promise: in a
training pass every site drops and nothing else does; with all rates at 0 two passes are equal; and the first and last
site of each kind, set to 0.5 alone, changes the output. The process ends with 1 if a model fails.
"""

import argparse
import logging
import multiprocessing
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_dropout.randomness import isolated_randomness, seed_everywhere
from lightning_dropout.sites import Kind, Site, sites_of
from lightning_dropout.sites.audit import audit
from lightning_dropout.zoo import build

TABLE = Path(__file__).parent.parent / "COVERAGE.md"
RATE = 0.3
KINDS = get_args(Kind)
PASSED, NO_SITE, REFUSED, FAILED = "every site drops", "drops nothing", "refused", "**fails**"
LIBRARIES = {
    "timm": "timm: of each module of `list_models()` the model with the fewest parameters",
    "tv": "torchvision: every image classifier",
    "hf": "transformers: the architectures of PyTorch's `benchmarks/dynamo`, few and narrow layers",
    "peft": "peft: LoRA with `lora_dropout` in every linear layer, on such models",
}
_TRIES = 20  # passes until a site at rate 0.5 must have dropped something, even one that draws a single bit

# huggingface_models_list.txt in benchmarks/dynamo of pytorch/pytorch, what its versions have listed; to the right the
# class of an entry that is no class. Then what huggingface.py beside it imports.
DYNAMO = """
    AlbertForMaskedLM, AlbertForQuestionAnswering, AllenaiLongformerBase = LongformerForMaskedLM, BartForCausalLM,
    BartForConditionalGeneration, BertForMaskedLM, BertForQuestionAnswering, BigBird = BigBirdForMaskedLM,
    BlenderbotForCausalLM, BlenderbotForConditionalGeneration, BlenderbotSmallForCausalLM,
    BlenderbotSmallForConditionalGeneration, CamemBert = CamembertForMaskedLM, DebertaForMaskedLM,
    DebertaForQuestionAnswering, DebertaV2ForMaskedLM, DebertaV2ForQuestionAnswering, DistilBertForMaskedLM,
    DistilBertForQuestionAnswering, DistillGPT2 = GPT2LMHeadModel, ElectraForCausalLM, ElectraForQuestionAnswering,
    GPT2ForSequenceClassification, GPTJForCausalLM, GPTJForQuestionAnswering, GPTNeoForCausalLM,
    GPTNeoForSequenceClassification, GoogleFnet = FNetForMaskedLM, LayoutLMForMaskedLM,
    LayoutLMForSequenceClassification, M2M100ForConditionalGeneration, MBartForCausalLM, MBartForConditionalGeneration,
    MT5ForConditionalGeneration, MegatronBertForCausalLM, MegatronBertForQuestionAnswering, MobileBertForMaskedLM,
    MobileBertForQuestionAnswering, OPTForCausalLM, PLBartForCausalLM, PLBartForConditionalGeneration,
    PegasusForCausalLM, PegasusForConditionalGeneration, Reformer = ReformerForMaskedLM, RobertaForCausalLM,
    RobertaForQuestionAnswering, Speech2Text2ForCausalLM, T5ForConditionalGeneration, T5Small =
    T5ForConditionalGeneration, TrOCRForCausalLM, XGLMForCausalLM, XLNetLMHeadModel, YituTechConvBert =
    ConvBertForMaskedLM, meta-llama/Llama-3.2-1B = LlamaForCausalLM, google/gemma-2-2b = Gemma2ForCausalLM,
    google/gemma-3-4b-it = Gemma3ForConditionalGeneration, openai/whisper-tiny = WhisperForConditionalGeneration,
    Qwen/Qwen3-0.6B = Qwen3ForCausalLM, mistralai/Mistral-7B-Instruct-v0.3 = MistralForCausalLM, openai/gpt-oss-20b =
    GptOssForCausalLM,
    AlbertForPreTraining, BlenderbotModel, BlenderbotSmallModel, CLIPModel, CLIPVisionModel, ElectraForPreTraining,
    GPTJForSequenceClassification, HubertForSequenceClassification, LxmertForPreTraining, LxmertForQuestionAnswering,
    MarianForCausalLM, MarianMTModel, MarianModel, PegasusModel, ViTForImageClassification, ViTForMaskedImageModeling,
    ViTModel
"""
PEFT = ("BertForMaskedLM", "LlamaForCausalLM", "T5ForConditionalGeneration")


@dataclass(frozen=True)
class Record:
    """What was found in one model.

    Args:
        name: As the zoo calls it.
        sites: Number of sites of each kind, in the order of ``KINDS``.
        result: One of ``PASSED``, ``NO_SITE``, ``REFUSED`` and ``FAILED``.
        remarks: What is to be said: why it is refused or fails, what it draws at random besides.
    """

    name: str
    sites: tuple[int, ...]
    result: str
    remarks: tuple[str, ...]


# One model.


def check(name: str) -> Record:
    """Build a model, audit it, and try its sites out.

    Args:
        name: A name of the zoo, or ``"peft/<what may stand behind hf/>"``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        try:
            model, inputs = _build(name)
            with isolated_randomness(model):
                return _check(name, model, inputs)
        except Exception as error:
            raise RuntimeError(f"{name} cannot be checked: {type(error).__name__}: {error}") from error


def _build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    library, _, rest = name.partition("/")
    if library != "peft":
        return build(name, RATE)
    import peft

    model, inputs = build(f"hf/{rest}", RATE)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", lora_dropout=RATE))
    return adapted, inputs


def _check(name: str, model: nn.Module, inputs: dict[str, Any]) -> Record:
    _unsettle(model.requires_grad_(False))  # without a graph the largest takes 3 GB instead of 7
    report = audit(model, **inputs)
    drawing = [f"draws at random besides: {places}"] if (places := _places(report.unknown)) else []
    try:
        sites = sites_of(model)
    except ValueError as error:
        return Record(name, _counts(sites_of(model, strict=False)), REFUSED, (str(error), *drawing))
    silent = [row for row in report.silent if row.reason != "rate 0"]
    wrong = {"unregistered": report.unregistered, "silent": silent}
    faults = [f"{len(rows)} {state}: {_places(rows)}" for state, rows in wrong.items() if rows]
    names = {row.name for row in silent}
    faults += _faults_of_rates(model, inputs, [site for site in sites if site.name not in names], bool(drawing))
    result = FAILED if faults else PASSED if sites else NO_SITE
    return Record(name, _counts(sites), result, (*faults, *drawing))


def _counts(sites: Sequence[Site]) -> tuple[int, ...]:
    return tuple(sum(site.kind == kind for site in sites) for kind in KINDS)


def _places(rows: Sequence[Any]) -> str:
    places = Counter(
        (
            re.sub(r"\d+", "#", row.name or "the model"),
            f"{row.operation} at {row.location}" if row.operation else row.reason,
        )
        for row in rows
    )
    return "; ".join(f"`{name}`{f' ×{count}' if count > 1 else ''} ({why})" for (name, why), count in places.items())


def _unsettle(model: nn.Module) -> None:
    """Move the parameters that are 0 or 1 throughout: behind them a dropped branch may not show in the output."""
    seed_everywhere(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _faults_of_rates(model: nn.Module, inputs: dict[str, Any], sites: Sequence[Site], draws: bool) -> list[str]:
    """Set rates and compare passes; what ``draws`` besides may differ at rate 0, and is then no measure of a site."""
    model.train()
    for site in sites:
        site.rate = 0.0
    plain = _outputs(model, inputs, seed=0)
    if not _equal(plain, _outputs(model, inputs, seed=1)):
        return [] if draws else ["random though every rate is 0"]
    faults = []
    for kind in KINDS:
        of_kind = [site for site in sites if site.kind == kind]
        for site in dict.fromkeys((*of_kind[:1], *of_kind[-1:])):
            site.rate = 0.5
            if all(_equal(plain, _outputs(model, inputs, seed)) for seed in range(2, 2 + _TRIES)):
                faults.append(f"`{site.name}` at 0.5 changes no output")
            site.rate = 0.0
    return faults


def _outputs(model: nn.Module, inputs: dict[str, Any], seed: int) -> list[Tensor]:
    seed_everywhere(seed)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(**inputs)) if isinstance(leaf, Tensor)]


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _start() -> None:
    torch.set_num_threads(1)  # the processes share the cores
    logging.disable(logging.WARNING)  # the libraries' own


# Which models.


def timm_names(table: str) -> list[str]:
    """Return the smallest model of each module: those of ``table`` if this version of timm wrote it, else anew."""
    import timm

    if f"timm {version('timm')}," in table:
        return re.findall(r"^\| (timm/\S+) \|", table, re.MULTILINE)
    smallest: dict[str, tuple[int, int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name, pretrained=False)
        size = sum(parameter.numel() for parameter in model.parameters())
        key = size, max(model.pretrained_cfg["input_size"]), f"timm/{name}"
        module = timm.models.model_entrypoint(name).__module__
        smallest[module] = min(key, smallest.get(module, key))
    return sorted(name for _, _, name in smallest.values())


def torchvision_names() -> list[str]:
    """Return all image classifiers, those made for quantisation included."""
    from torchvision import models

    return [f"tv/{name}" for module in (models, models.quantization) for name in models.list_models(module)]


def transformers_names() -> tuple[list[str], list[str], list[str]]:
    """Return the names with every attention that they have, the classes without ``sdpa``, and those that are gone."""
    import transformers

    listed = sorted({entry.rpartition("=")[2].strip() for entry in DYNAMO.split(",")}, key=str.lower)
    here = {name: getattr(transformers, name) for name in listed if hasattr(transformers, name)}
    without = [name for name, architecture in here.items() if not architecture._supports_sdpa]
    attentions = {name: ["eager"] if name in without else ["eager", "sdpa"] for name in here}
    names = [f"hf/{name}@{attention}" for name in here for attention in attentions[name]]
    return names, without, [name for name in listed if name not in here]


# The table.


def page(records: Sequence[Record], without_sdpa: Sequence[str], gone: Sequence[str]) -> str:
    """Return COVERAGE.md: the same bytes for the same versions."""
    return "\n".join([*_head(records), *_sections(records, without_sdpa, gone)]) + "\n"


def _head(records: Sequence[Record]) -> Iterator[str]:
    libraries = ("timm", "torchvision", "transformers", "peft", "torch")
    versions = [f"{name} {version(name).partition('+')[0]}" for name in libraries]  # +cpu and the like say nothing here
    results = (PASSED, NO_SITE, REFUSED, FAILED)
    yield f"""# Coverage

What `find_sites` and `audit` find in {len(records)} models that they were not written for. Generated by
`python scripts/audit_models.py` with {", ".join(versions)}.
A slow test generates it again and compares.

Each model has random weights and a rate of {RATE} wherever its constructor takes one. **{PASSED.capitalize()}** means
that one audited training pass saw every site drop and no drop besides, that two training passes with all rates at 0 are
equal, and that the first and the last site of each kind, set to 0.5 alone, changes the output. (Where a model draws at
random besides, as noted, passes may differ in any case; then they are not compared.) Sites to which a depth rule gives
a rate of 0 cannot drop in the audited pass; they are sites all the same.
"""
    yield f"| | models | {' | '.join(results)} | {' | '.join(f'{kind} sites' for kind in KINDS)} |"
    yield "|---" * (2 + len(results) + len(KINDS)) + "|"
    for library in LIBRARIES:
        own = [record for record in records if record.name.startswith(f"{library}/")]
        numbers = [len(own), *(sum(record.result == result for record in own) for result in results)]
        numbers += [sum(column) for column in zip(*(record.sites for record in own), strict=True)]
        yield f"| {library} | {' | '.join(map(str, numbers))} |"


def _sections(records: Sequence[Record], without_sdpa: Sequence[str], gone: Sequence[str]) -> Iterator[str]:
    for library, title in LIBRARIES.items():
        own = [record for record in records if record.name.startswith(f"{library}/")]
        yield f"\n## {title}\n"
        if library == "hf":
            yield f"Without `sdpa` in transformers, so only `eager`: {', '.join(without_sdpa)}.\n"
            yield f"In the list and no longer in transformers: {', '.join(gone)}.\n"
        remarked = {(record.result, "; ".join(record.remarks)): None for record in own if record.remarks}
        for result, remarks in remarked:
            names = [f"`{each.name}`" for each in own if (each.result, "; ".join(each.remarks)) == (result, remarks)]
            yield f"- {', '.join(names)}: {result}; {remarks}"
        yield from [""] if remarked else []
        yield f"| model | {' | '.join(KINDS)} | result |"
        yield f"|---{'|---:' * len(KINDS)}|---|"
        for record in own:
            yield f"| {record.name} | {' | '.join(str(n or '') for n in record.sites)} | {record.result} |"


def main() -> None:
    """Check, write, end with 1 if a model fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models to check instead, e.g. timm/resnet18; writes nothing")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--processes", type=int, default=2, help="each takes up to 4 GB")
    arguments = parser.parse_args()
    if arguments.names:
        _start()
        for record in map(check, arguments.names):
            sites = ", ".join(f"{n} {kind}" for n, kind in zip(record.sites, KINDS, strict=True) if n)
            print("\n  ".join((f"{record.name}: {sites or 'no site'}: {record.result}", *record.remarks)))
        return
    names, without_sdpa, gone = transformers_names()
    names = [*timm_names(TABLE.read_text() if TABLE.is_file() else ""), *torchvision_names(), *names]
    names += [f"peft/{name}" for name in PEFT]
    records = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, _start) as pool:
        for record in pool.imap(check, names):
            records.append(record)
            print(f"[{len(records)}/{len(names)}] {record.name}: {record.result}", flush=True)
    arguments.output.write_text(page(records, without_sdpa, gone))
    sys.exit(any(record.result == FAILED for record in records))


if __name__ == "__main__":
    main()
