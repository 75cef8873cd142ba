# SPDX-License-Identifier: Apache-2.0
"""The version; the build reads it from here, because asking the installed metadata makes importing slow."""

version = "0.1.0"
