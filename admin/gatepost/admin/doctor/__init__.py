# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor`: looks at the real thing, check by check."""
