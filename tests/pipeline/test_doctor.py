"""The diagnosis: finds what is there, names what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from restorelcc import doctor
from restorelcc.cli import cli


def test_a_whole_installation_is_well(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path)
    assert doctor.exit_code(findings) == 0, [finding for finding in findings if finding.state == "missing"]
    topics = {finding.topic for finding in findings}
    assert {"python", "torch", "build", "processor", "disk", "smollm2-135m", "kernels of sparse_linear"} <= topics
    assert any(finding.topic == "GPU" and finding.state == "note" for finding in findings)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stock = importlib.metadata.version

    def version(name: str) -> str:
        if name == "jinja2":
            raise importlib.metadata.PackageNotFoundError(name)
        return stock(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = doctor.examine(tmp_path)
    assert doctor.exit_code(findings) == 1
    (missing,) = [finding for finding in findings if finding.state == "missing"]
    assert missing.topic == "jinja2"
    assert missing.remedy == "pip install jinja2"


def test_a_broken_native_part_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> list[doctor.Finding]:
        raise ImportError("no native part")

    monkeypatch.setattr(doctor, "_kernels", broken)
    findings = doctor.examine(tmp_path)
    assert doctor.exit_code(findings) == 1
    assert any("no native part" in finding.text and finding.remedy for finding in findings)


def test_a_small_disk_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "DISK_FOR_DEMO", 1 << 60)
    (disk,) = [finding for finding in doctor.examine(tmp_path) if finding.topic == "disk"]
    assert disk.state == "note"
    assert "--out" in disk.remedy


def test_json_and_table() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    value = json.loads(result.stdout)
    assert value["ok"] is (result.exit_code == 0)
    assert {finding["state"] for finding in value["findings"]} <= {"ok", "note", "missing"}
    assert "torch" in CliRunner().invoke(cli, ["doctor"]).stdout
