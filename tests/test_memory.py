"""The process's memory settings reach torch."""

import os
import subprocess
import sys


def test_huge_pages_are_asked_for_before_torch_is_imported_and_a_users_choice_stands() -> None:
    code = "import sys; from xft.memory import use_huge_pages; use_huge_pages(); print('torch' in sys.modules);"
    code += "import os; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    for given, kept in (({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")):
        environment = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", kept]
