"""The commands for a model that is there: generate, chat, evaluate, merge, export. Imports no torch before one runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from unified.names import completes
from unified.saying import said_plainly

Model = Annotated[str, typer.Argument(help="A run (its last model), a stage, a model folder, or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
Longest = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Longest answer, in tokens. Without: 256, or what the model can hold."),
]
Temperature = Annotated[float, typer.Option("--temperature", min=0, help="Divides the logits; 0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Keep the likeliest tokens up to this mass.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed and prompt give the same answers.")]
System = Annotated[str | None, typer.Option("--system", help="A system message.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python that lies beside the weights.")]
Force = Annotated[bool, typer.Option("--force", help="Use a folder that holds another run.")]


def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="A text, - for the standard input; may be given again. Without: the input."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Prompts of a dataset: a file, a name, or {name: ..., SETTING: ...}.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of --data: train or held_out.")] = "train",
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Of --data: only so many.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers per prompt.")] = 1,
    max_tokens: Longest = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    system: System = None,
    plain: Annotated[bool, typer.Option("--plain", help="The prompt as it stands, without the chat template.")] = False,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per prompt.")] = False,
) -> None:
    """Sample answers of a model.

    Example: unified generate runs/quickstart --prompt e --n 3 --max-tokens 12
    """
    with said_plainly():
        from unified.as_json import print_json
        from unified.data import Sampling
        from unified.errors import UserError
        from unified.found_model import find_model
        from unified.generate_tool import LONGEST, Speaker, ask, ask_rows, read_prompts

        if data is not None and prompt:
            raise UserError("give --prompt or --data, not both")
        texts = read_prompts(prompt or []) if data is None else []
        speaker = Speaker(find_model(model).artifact(trusted=trust), seed=seed, fit=max_tokens is None)
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens or LONGEST)
        if data is not None:
            asked = ask_rows(speaker, data, sampling, n=n, split=split, rows=rows)
        else:
            asked = ask(speaker, texts, sampling, n=n, plain=plain, system=system)
        for one in asked:
            if as_json:
                print_json(one.as_dict(), lines=True)
                continue
            for answer in one.answers:
                typer.echo(answer.text)
                if answer.finish == "length":
                    typer.echo(f"(cut off after {len(answer.ids)} tokens)", err=True)


def chat(
    model: Model,
    max_tokens: Longest = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    system: System = None,
    trust: Trust = False,
) -> None:
    """Talk to a model; /reset forgets the conversation, /quit or Ctrl-D ends it.

    Example: unified chat runs/quickstart --temperature 0.7
    """
    with said_plainly():
        from unified.chat_tool import HELP, converse, lines_of_person
        from unified.data import Sampling
        from unified.found_model import find_model
        from unified.generate_tool import LONGEST, Speaker

        found = find_model(model)
        speaker = Speaker(found.artifact(trusted=trust), seed=seed, fit=max_tokens is None)
        template = "its chat template" if speaker.chats else "the plain template, for it has none of its own"
        if sys.stdin.isatty():
            typer.echo(f"{found.path}, with {template}. {HELP}")
        elif not speaker.chats:
            typer.echo(f"({found.path} is asked with {template})", err=True)
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens or LONGEST)

        def write(text: str) -> None:
            typer.echo(text, nl=False)
            sys.stdout.flush()

        def aside(line: str) -> None:  # a pipe gets the answers alone
            typer.secho(line, nl=False, dim=True, err=not sys.stdout.isatty())

        converse(speaker, lines_of_person(), write, sampling, system, aside)


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="A dataset by name, a file, or {name: ..., SETTING: ...}.")],
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", help="What judges sampled answers, or {name: ...}.", autocompletion=completes("reward")
        ),
    ] = None,
    perplexity: Annotated[bool, typer.Option("--perplexity", help="Of the answers in the rows.")] = False,
    split: Annotated[str, typer.Option("--split", help="held_out or train.")] = "held_out",
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Only so many.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers per prompt.")] = 1,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the stage; `unified show evaluate` lists them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run folder. Without: one under runs/ for this question.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure a model on rows: reward, accuracy, pass@k, perplexity, each with its error.

    Example: unified evaluate runs/quickstart --data "{name: random_walks, view: prompts}" \\
        --reward random_walks --max-tokens 12
    """
    with said_plainly():
        from unified.as_json import print_json
        from unified.errors import UserError
        from unified.found_model import find_model
        from unified.manifest import fingerprint_of
        from unified.model_recipes import run_stage, stage_recipe

        if reward is None and not perplexity:
            raise UserError(
                "there is nothing to measure", "give --reward NAME (`unified list rewards`) or --perplexity"
            )
        found = find_model(model).path
        path = str(found.absolute()) if isinstance(found, Path) else found
        settings = {
            "model": path, "split": split, "num_prompts": rows, "samples": samples, "max_tokens": max_tokens,
            "temperature": temperature, "perplexity": perplexity,
        }  # fmt: skip
        recipe = stage_recipe("evaluate", settings, {"data": data, "reward": reward}, sets or ())
        output = output or Path("runs") / f"evaluate-{fingerprint_of(asked=recipe.root.plain())[:8]}"
        manifest, folder = run_stage(recipe, output, force=force)
        if as_json:
            print_json({"folder": folder, "summary": manifest.summary})
            return
        for name, value in manifest.summary.items():
            typer.echo(f"{name.removeprefix('eval/')}  {value:.6g}")
        typer.echo(f"Manifest and answers are in {folder}.")


def merge(
    models: Annotated[list[str], typer.Argument(help="Runs, stages, model folders or hub ids of one architecture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder; its model is in merge/model.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="One per model: 1,3. Divided by their sum; without: all the same.")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option("--ema-decay", help="In place of weights: of a moving average in their order.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Average the weights of models.

    Example: unified merge runs/a runs/b --weights 1,3 -o runs/soup
    """
    with said_plainly():
        from unified.as_json import print_json
        from unified.model_recipes import merge_models

        manifest, path = merge_models(models, output, weights=weights, ema_decay=ema_decay, force=force)
        if as_json:
            print_json({"model": path, "of": models, "summary": manifest.summary})
            return
        typer.echo(f"The average of {len(models)} models is in {path}")


def export(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, a stage, a model folder or a hub id.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    name: Annotated[str | None, typer.Option("--name", help="What the card calls the model; without: FOLDER.")] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Its licence, by the hub's name: apache-2.0, mit, other, ...")
    ] = None,
    data_license: Annotated[
        str | None, typer.Option("--data-license", help="What may be done with the data, in words.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Put it on the hub, in a private repository.")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a model as others load it: weights with adapters folded, tokenizer, and a model card.

    Example: unified export runs/quickstart exported --license apache-2.0
    """
    with said_plainly():
        from unified.as_json import of_exported, print_json
        from unified.export import export_model

        told = export_model(
            model, folder, dtype=dtype, name=name, license=license, data_license=data_license, push=push, trusted=trust
        )
        if as_json:
            print_json(of_exported(folder, told))
            return
        for line in told:
            typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (generate, chat, evaluate, merge, export):
        app.command()(command)
