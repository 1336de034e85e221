"""A guard that records and refuses look-ups of host names in child processes, by libraries in C too.

Python's own `socket` is not where a library in C looks names up, so the guard is a shared library that is loaded
before all others and takes the place of the C library's `getaddrinfo`.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuses(const char *name) {
    unsigned char address[16];
    if (!name || !*name || !strcmp(name, "localhost")) return 0;
    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1) return 0;
    FILE *file = fopen(getenv("LOOKUPS_FILE"), "a");
    if (file) { fprintf(file, "%s\n", name); fclose(file); }
    return 1;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (refuses(name)) return EAI_FAIL;
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(name, service, hints, result);
}

struct hostent *gethostbyname(const char *name) {
    static struct hostent *(*real)(const char *);
    if (refuses(name)) return NULL;
    if (!real) real = dlsym(RTLD_NEXT, "gethostbyname");
    return real(name);
}
"""


@dataclass(frozen=True)
class LookupGuard:
    """Environment variables for child processes, and what they tried to look up or to keep."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables that load the guard and give the process an empty home."""
        return {
            "LD_PRELOAD": str(self.folder / "guard.so"),
            "LOOKUPS_FILE": str(self.folder / "names"),
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home" / ".cache"),
        }

    def names(self) -> list[str]:
        """Host names that were looked up, in order."""
        path = self.folder / "names"
        return path.read_text(encoding="utf-8").split() if path.exists() else []

    def makers_files(self) -> list[Path]:
        """Files with which ONNX Runtime's telemetry remembers the machine; it makes them before it looks up a name."""
        return list((self.folder / "home").rglob("*icrosoft*"))


def make_guard(folder: Path) -> LookupGuard:
    """Compiles the guard; skips the test where there is no C compiler or no preloading."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("a C compiler on Linux is needed to watch look-ups of names")
    (folder / "home").mkdir()
    (folder / "guard.c").write_text(SOURCE, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "guard.so"), str(folder / "guard.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return LookupGuard(folder)
