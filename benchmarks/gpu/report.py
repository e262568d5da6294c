"""What stages have found, as JSON and as short tables. Standard library only: it always works."""

from __future__ import annotations

import json
import os
from pathlib import Path


def journal(path: Path) -> list[dict]:
    """The last entry of each item of a stage's journal."""
    entries: dict[str, dict] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
                entries[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                continue
    return list(entries.values())


def collect(work: Path, about: dict, stages: dict[str, dict]) -> dict:
    """Everything there is so far.

    Parameters
    ----------
    work : Path
        Folder of the journals.
    about : dict
        Commit, time and the like.
    stages : dict
        Of each stage: status and seconds.
    """
    found = {"schema": 1, **about, "stages": {}}
    for entry in journal(work / "info.jsonl"):
        if entry["state"] == "done":
            found["machine"] = entry["data"]
    ceilings = work / "ceilings.json"
    if ceilings.is_file():
        found["ceilings"] = json.loads(ceilings.read_text())
    for name, state in stages.items():
        entries = journal(work / f"{name}.jsonl")
        found["stages"][name] = {
            **state,
            "done": sum(entry["state"] == "done" for entry in entries),
            "failed": [
                {"key": entry["key"], "error": entry.get("error", "did not return")}
                for entry in entries
                if entry["state"] != "done"
            ],
            "results": [
                {"key": entry["key"], **entry["data"]}
                for entry in entries
                if entry["state"] == "done" and name != "info"
            ],
        }
    return found


def write(path: Path, text: str) -> None:
    """Replace a file whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def tables(found: dict) -> str:
    """The short tables, what matters most last: the end of a long output is what is read."""
    stages = found["stages"]
    lines = []
    bench = _rows(stages, "bench")
    if bench:
        lines += ["", "all rows (ratio over the fastest rival; share of the limit)"]
        lines += [_row(row) for row in bench]
    ways = _rows(stages, "rivals")
    if ways:
        lines += ["", "low-bit rivals", *(f"  {row['told']}" for row in ways)]
    lines += ["", *_state(stages)]
    vit = _rows(stages, "vit")
    if vit:
        lines += ["", "ViT, batch 1 (target: at most 16 MB)"]
        lines += [f"  {row['what']:32} {row['told']}" for row in vit if "what" in row]
    first = {row["key"]: row for row in _rows(stages, "headlines")}
    last = {row["key"]: row for row in bench}
    if first or last:
        lines += ["", "headlines: as rules configure them -> after the search"]
        for key in first | last:
            row = last.get(key, first.get(key))
            target = row["case"]["target"]
            if target is None:
                continue
            before = f"{first[key]['ratio']:.2f}x" if key in first else "-"
            after = f"{last[key]['ratio']:.2f}x" if key in last else "-"
            best = max(r["ratio"] for r in (first.get(key), last.get(key)) if r)
            met = "met" if best >= target else "MISSED"
            lines.append(
                f"  {key:48} {before:>8} -> {after:>8}   target {target:g}x: {met}"
                f"   ({row['ours']['us']:.2f} us by {row['kernel']}, {row['rival']} "
                f"{row['rivals'][row['rival']]['us']:.2f} us)"
            )
    return "\n".join(lines)


def _rows(stages: dict, name: str) -> list[dict]:
    return stages.get(name, {}).get("results", [])


def _row(row: dict) -> str:
    share = max(row["bandwidth_share"], row["arithmetic_share"])
    return (
        f"  {row['key']:52} {row['ours']['us']:10.2f} us {row['ratio']:7.2f}x {share:6.1%}  "
        f"{row['kernel']}"
    )


def _state(stages: dict) -> list[str]:
    lines = ["stages"]
    for name, stage in stages.items():
        failed = stage["failed"]
        lines.append(
            f"  {name:10} {stage['status']:16} {stage['seconds']:6.1f} s, "
            f"{stage['done']} done, {len(failed)} failed"
        )
        lines += [f"    {entry['key']}: {entry['error']}" for entry in failed[:8]]
        if failed[8:]:
            lines.append(f"    and {len(failed) - 8} more")
    return lines
