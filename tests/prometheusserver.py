# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Prometheus for tests, and its promtool: what packaging/fetch-peers has unpacked."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from daemonprocess import TIMEOUT_S, TOP, free_port, poll
from peers import start, stop, tree, wait_for_port

EXAMPLES = TOP / "examples/prometheus"

DASHBOARD: dict[str, Any] = json.loads((EXAMPLES / "gatepost-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

Sample = tuple[Mapping[str, str], float]


def expressions_of(panel: Mapping[str, Any]) -> list[str]:
    """Return the expressions of a panel of the dashboard, with something in the place of Grafana's variables."""
    values = {"$__rate_interval": "5m", "$instance": ".*", "$organization": ".*"}
    return [re.sub(r"\$\w+", lambda found: values[found[0]], target["expr"]) for target in panel["targets"]]


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool in the folder of the examples."""
    command = [str(tree("prometheus") / "usr/bin/promtool"), *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, cwd=EXAMPLES)


class Prometheus:
    """Prometheus with the example's configuration and rules, but for port and intervals; it keeps its data in *folder*.

    A context manager. Its one target is 127.0.0.1:*port*, the instance mail.contoso.com.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._url = ""
        for name in ("prometheus.yml", "alerts.yml"):
            text = re.sub(r"(?m)^( *\w*interval: ).*$", r"\g<1>200ms", (EXAMPLES / name).read_text())
            (folder / name).write_text(text.replace("127.0.0.1:9797", f"127.0.0.1:{port}"))
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Prometheus:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._process = start(
            [
                str(tree("prometheus") / "usr/bin/prometheus"),
                f"--config.file={self._folder}/prometheus.yml",
                f"--storage.tsdb.path={self._folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ]
        )
        wait_for_port(port, self._process)
        poll(self._is_ready, "Prometheus ready")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        stop(self._process)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=TIMEOUT_S):
                return True
        except urllib.error.HTTPError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its HTTP API."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[Sample]:
        """Return the labels and values of an expression at this moment."""
        return [(item["metric"], float(item["value"][1])) for item in self.get("query", query=expression)["result"]]

    def value(self, expression: str) -> Optional[float]:
        """Return the value of an expression of one sample at most; None without one."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def wait_for(self, expression: str, value: Optional[float]) -> None:
        """Return when an expression has a value."""
        poll(lambda: self.value(expression) == value, f"{expression} is {value}")

    def alerts(self) -> dict[str, dict[str, str]]:
        """Return the annotations of the alerts that are pending or fire, by name."""
        return {item["labels"]["alertname"]: item["annotations"] for item in self.get("alerts")["alerts"]}
