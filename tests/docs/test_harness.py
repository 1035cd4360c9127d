"""The tests of the documentation notice what is wrong: renamed flags, changed outputs, lines that escape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.page import Page, anchor, read_page
from tests.docs.running import Shell, difference
from tests.docs.test_pages import broken, escaped, numbered, refusal, run_page, typed

PAGE = """\
# A page

`vitctl train --patience 3` stops early.

```sh
# a comment
export RUN=first
vitctl train --dataset digits --net cct_2 --limit-train 40 --limit-test 20 \\
  --epochs 1 --size 8 --name $RUN
```

```console
$ vitctl runs list --columns epochs,seed
epochs  seed
────────────
20         0
$ vitctl train --net vit_smal
error: unknown --net 'vit_smal'
hint: did you mean ...?
```

```python
import vitctl

print(len(vitctl.read_runs("runs")), "runs")
```

```text
9 runs
```
"""


def page_of(text: str, folder: Path) -> Page:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return read_page(path)


def test_the_steps_of_a_page(tmp_path: Path) -> None:
    page = page_of(PAGE, tmp_path)
    assert [(step.line, step.language, step.output is not None) for step in page.steps] == [
        (7, "sh", False), (8, "sh", False), (13, "console", True), (17, "console", True), (23, "python", True),
    ]  # fmt: skip
    assert page.steps[1].text.endswith("--limit-test 20 --epochs 1 --size 8 --name $RUN")
    assert page.code == [(3, "vitctl train --patience 3")]
    assert not page.faults and not escaped(page)


PLANTED = {
    "a renamed flag": ("--limit-train 40", "--limit-images 40", r"page\.md:8: .*(.|\n)*unknown flag --limit-images"),
    "a changed output": ("hint: did you mean", "hint: you may mean", r"page\.md:17: .*(.|\n)*- hint: you may mean"),
    "a changed column": ("epochs  seed\n", "rounds  seed\n", r"page\.md:13: .*(.|\n)*- rounds seed\n\s*\+ epochs seed"),
    "an error that does not occur": ("vit_smal\nerror", "vit_small --print-config\nerror", r"page\.md:17: "),
    "a changed result of Python": ("9 runs\n", "9 trials\n", r"page\.md:23: .*(.|\n)*- # trial"),
    "an output left out": ("error: unknown --net 'vit_smal'\n", "", r"page\.md:17: "),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_in_a_page_is_found(fault: str, tmp_path: Path, shell: Shell) -> None:
    before, after, message = PLANTED[fault]
    assert PAGE.count(before) == 1, "a fault is planted once"
    with pytest.raises(AssertionError, match=message):
        run_page(page_of(PAGE.replace(before, after), tmp_path), shell)


def test_a_page_without_faults_passes(tmp_path: Path, shell: Shell) -> None:
    page = page_of(PAGE, tmp_path)
    assert run_page(page, shell) == (page.steps, [])
    assert typed(page.text) == [step.line for step in page.steps[:-1]]


@pytest.mark.parametrize(
    "place",
    [
        "\nType vitctl train --epochs 3 to train.\n",
        "\n    vitctl train --epochs 3\n",
        "\n```text\n$ vitctl sweep agent FILE\n```\n",
        "\n```sh\n# vitctl doctor\n```\n",
        "\n```bash\npython -m tests.docs.generate\n```\n",
        "\nOr vitctl --version.\n",
    ],
)
def test_a_command_that_is_not_run_is_found(place: str, tmp_path: Path) -> None:
    page = page_of(PAGE + place, tmp_path)
    assert len(escaped(page)) == 1, escaped(page)


def test_words_that_are_no_commands_are_left_alone(tmp_path: Path) -> None:
    assert not escaped(page_of(PAGE + "\nvitctl runs on Linux; vitctl trains models, and vitctl sweeps.\n", tmp_path))


@pytest.mark.parametrize("block", ["```\nls\n```", "```bash\nls\n```", "    ls", "```sh\nls", "```console\nls\n```"])
def test_blocks_of_another_kind_are_found(block: str, tmp_path: Path) -> None:
    assert len(page_of(f"# A page\n\n{block}\n", tmp_path).faults) == 1


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("vitctl train --epochs 3", ""),
        ("vitctl train --n_epochs=N --net NAME --aug", ""),
        ("vitctl export", ""),
        ("vitctl sweep create FILE --dry-run 3", ""),
        ("vitctl sweep", ""),
        ("vitctl --version", ""),
        ("vitctl train --print-config > my.yaml", ""),
        ("vitctl list-models --timm '*vit*' | head", ""),
        ("vitctl trian", "has no command trian"),
        ("vitctl sweep creat FILE", "has no command creat"),
        ("vitctl train --epoch-count 3", "unknown flag --epoch-count"),
        ("vitctl eval RUN --epochs 3", "has no flag --epochs"),
        ("vitctl train --val somewhere", "unknown --val 'somewhere'"),
        ("vitctl train --epochs", "--epochs needs a value"),
        ("vitctl list-recipes one two", "extra argument"),
        ("vitctl list-models --size large", "--size takes a whole number"),
    ],
)
def test_commands_in_prose_are_parsed(code: str, fault: str) -> None:
    found = refusal(code)
    assert fault in found and bool(found) == bool(fault), found


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["loss 1.25 in 3 s"], "loss 0.9e-3 in 2 min 5 s", True),
        (["loss 1.25 in 3 s"], "cost 1.25 in 3 s", False),
        (["net cct_2"], "net cct_4", False),
        (["a", "...", "d"], "a\nb\nc\nd", True),
        (["a", "...", "d"], "a\nd", True),
        (["a", "...", "d"], "a\nd\ne", False),
        (["a", "d"], "a\nb\nd", False),
        (["a", "...", "c", "...", "e"], "a\nb\nc\nd\nc\ne", True),
        (["a", "...", "c", "...", "e"], "a\nb\nd\ne", False),
        (["...", "c", "..."], "c", True),
        (["a", "...", "a"], "a", False),
        (["..."], "", True),
        (["a"], "", False),
        (["error: ... does not fit"], "error: this one does not fit", True),
        (["model.onnx  1.7 MiB"], "model.onnx  529.1 KiB", True),
        (["cpu (AMD EPYC, 2 threads)"], "cpu (Intel(R) Xeon(R) Processor, 8 threads)", True),
        (["torch 2.14.1+cu130"], "torch 2.15.0", True),
        (["1 epoch"], "12 epochs", True),
        (["runs/cct_2-adamw-digits-20261124-120644"], "runs/cct_2-adamw-digits-20270101-000000", True),
        (["in /home/me/data"], "in /tmp/somewhere/else", True),
        (["from https://a.b/c.gz: no"], "from http://127.0.0.1:9/d.gz: no", True),
        (["a  b", "────"], "a      b\n────────────", True),
        (["a"], "warning: other processes use 60 % of the CPU: --threads 1 trains 2 times as fast\na", True),
        (["a"], "epoch 1/3 step 2/9 | loss 1.0\nexporting to onnx, opset 18\na", True),
        (["exporting to onnx", "a"], "a", False),
        (["precision fp32"], "precision bf16", True),
    ],
)
def test_outputs_are_compared_without_what_varies(shown: list[str], printed: str, same: bool) -> None:
    assert (difference(shown, printed) == "") is same


def test_links_are_checked(tmp_path: Path) -> None:
    text = (
        "# One `two`, three\n\n[a](#one-two-three) [b](#one) [c](../x.md) [d](https://a.b/c) ![e](page.md) `[f](g)`\n"
    )
    page = page_of(text, tmp_path)
    assert [link for _, link in page.links] == ["#one-two-three", "#one", "../x.md", "https://a.b/c", "page.md"]
    assert numbered(page.anchors) == {"one-two-three"}
    assert [each.split(": ")[1].split()[0] for each in broken(page)] == ["#one", "../x.md"]
    assert anchor("`vitctl sweep agent`") == "vitctl-sweep-agent" and numbered(["a", "a"]) == {"a", "a-1"}


def test_a_line_that_does_not_end_is_stopped(shell: Shell) -> None:
    with pytest.raises(TimeoutError, match="runs for more than 1 s; it printed\nbegun"):
        shell.run("echo begun; sleep 60", seconds=1)
