# SPDX-License-Identifier: GPL-3.0-or-later
# What gatepost uses of pymilter's C module, which brings no types.

from collections.abc import Callable
from typing import Any, Optional

M_CONNECT: int
M_HELO: int
M_ENVFROM: int
M_ENVRCPT: int
M_DATA: int
M_EOH: int
M_EOM: int

P_NODATA: int
P_NOHDRS: int
P_NOEOH: int
P_NOBODY: int
P_NOUNKNOWN: int
P_NR_CONN: int
P_NR_HELO: int
P_NR_MAIL: int
P_NR_HDR: int
P_NR_EOH: int

ADDHDRS: int
ADDRCPT: int
CHGFROM: int
CHGHDRS: int
DELRCPT: int
QUARANTINE: int
SETSYMLIST: int

CONTINUE: int
NOREPLY: int
REJECT: int
TEMPFAIL: int

class error(Exception): ...  # noqa: N801, N818

def set_connect_callback(function: Callable[..., int]) -> None: ...
def set_helo_callback(function: Callable[..., int]) -> None: ...
def set_envfrom_callback(function: Callable[..., int]) -> None: ...
def set_envrcpt_callback(function: Callable[..., int]) -> None: ...
def set_header_callback(function: Callable[..., int]) -> None: ...
def set_eoh_callback(function: Callable[..., int]) -> None: ...
def set_eom_callback(function: Callable[..., int]) -> None: ...
def set_abort_callback(function: Callable[..., int]) -> None: ...
def set_close_callback(function: Callable[..., int]) -> None: ...
def set_exception_policy(policy: int) -> None: ...
def setconn(address: str) -> None: ...
def settimeout(seconds: int) -> None: ...
def register(
    name: str,
    *,
    unknown: Optional[Callable[..., int]] = ...,
    data: Optional[Callable[..., int]] = ...,
    negotiate: Optional[Callable[[Any, list[int]], int]] = ...,
) -> None: ...
def opensocket(remove: bool) -> None: ...
def main() -> None: ...
