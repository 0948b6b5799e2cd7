"""Hostile programs, as data: a new one is one entry, and `test_battery.py` runs it through every level and entry.

None of them is dangerous where the sandbox is broken: loops end with the process that the test kills, memory, files and
processes are bounded, nothing outside the sandbox is written but files and processes that carry MARK.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

MARK = "xft-hostile"
"""In the name of every file that a program might leave behind."""


@dataclass(frozen=True)
class Trick:
    """Code that a wrong program starts with; whatever it does, the program must not pass."""

    code: str
    run: frozenset[str] | None = None
    """Statuses allowed in `run`; None: anything but passed."""
    call: frozenset[str] | None = None
    """Statuses allowed in `call`; None: those of `run`."""
    seconds: float = 5.0
    memory_mb: int = 512
    slow: bool = False
    never_at: dict[str, str] = field(default_factory=dict)
    """Levels at which it is not tried, and why."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", textwrap.dedent(self.code).strip() + "\n")


def trick(code: str, run: str = "", call: str = "", **options) -> Trick:
    """Return a trick; statuses are words."""
    return Trick(code, frozenset(run.split()) or None, frozenset(call.split()) or None, **options)


ROOT_FORKS = {"unsafe": "nothing bounds root's processes there"}

# --- at module level: each is followed by a wrong program -------------------------------------------------------------

TRICKS: dict[str, Trick] = {
    # leaving early
    "sys.exit(0)": trick("import sys; sys.exit(0)", "exited"),
    "os._exit(0)": trick("import os; os._exit(0)", "exited"),
    "raise SystemExit": trick("raise SystemExit", "exited"),
    "site's exit": trick("exit()", "exited failed"),
    "a thread ends the process": trick(
        "import os, threading; threading.Thread(target=os._exit, args=(0,)).start(); import time; time.sleep(5)",
        "exited",
    ),
    "an alarm ends the process": trick(
        """
        import os, signal
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while True: pass
        """,
        "exited",
    ),
    "an exit hook ends it well": trick("import atexit, os; atexit.register(os._exit, 0)", "failed", "wrong"),
    "exception hooks end it well": trick(
        """
        import os, sys, threading
        sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: os._exit(0)
        """,
        "failed",
        "wrong",
    ),
    "a finalizer ends it well": trick(
        """
        import os
        class Last:
            def __del__(self, leave=os._exit): leave(0)
        last = Last()
        """,
        "failed exited",
        "wrong exited",
    ),
    "aborts": trick("import os; os.abort()", "exited"),
    "kills itself": trick("import os; os.kill(os.getpid(), 9)", "exited"),
    "becomes true": trick("import os; os.execv('/bin/true', ['true'])", "exited failed"),
    "becomes another interpreter": trick(
        """
        import os
        os.execv('/proc/self/exe', ['python', '-c', 'print("passed")'])
        """,
        "exited failed",
    ),
    "crashes by ctypes": trick("import ctypes; ctypes.string_at(0)", "exited"),
    "calls the kernel by its 32-bit door": trick(
        """
        import ctypes, mmap
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        """,
        "exited",
        never_at={"unsafe": "nothing is refused there"},
    ),
    "is killed for bad memory under a fault handler": trick(
        "import ctypes, faulthandler; faulthandler.enable(all_threads=True); ctypes.string_at(0)", "exited"
    ),
    "faulthandler ends it": trick(
        """
        import faulthandler, os, time
        faulthandler.dump_traceback_later(0.05, exit=True, file=open(os.devnull, 'w'))
        time.sleep(5)
        """,
        "exited",
    ),
    "exits from an async exception": trick(
        """
        import ctypes, threading, time
        main = threading.main_thread().ident
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(SystemExit))
        for _ in range(100): time.sleep(0.01)
        """,
        "exited",
    ),
    # words and descriptors
    "prints the marker": trick(
        """
        import sys
        for word in ('passed', 'passed ' + '0' * 32, 'ok', '{"status": "passed"}', 'exit 0', 'ready'):
            print(word); print(word, file=sys.stderr)
        """,
        "failed",
        "wrong",
    ),
    "replaces the standard streams": trick(
        """
        import io, sys
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = sys.stdin = sys.__stdin__ = io.StringIO()
        """,
        "failed",
        "wrong",
    ),
    "puts nonsense in place of the standard streams": trick(
        "import sys; sys.stdout = sys.stderr = sys.stdin = 5", "failed", "wrong"
    ),
    "closes every descriptor": trick("import os; os.closerange(0, 4096)"),
    "closes every descriptor and leaves": trick("import os; os.closerange(0, 4096); os._exit(0)", "exited"),
    "puts the null device over every descriptor": trick("""
        import os
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(256):
            try: os.fstat(fd)
            except OSError: continue
            os.dup2(null, fd)
        """),
    "puts a pipe over every descriptor": trick("""
        import os
        reading, writing = os.pipe()
        for fd in range(64):
            if fd not in (reading, writing):
                try: os.fstat(fd)
                except OSError: continue
                os.dup2(writing if fd % 2 else reading, fd)
        """),
    "makes every descriptor non-blocking": trick(
        """
        import os
        for fd in range(256):
            try: os.set_blocking(fd, False)
            except OSError: pass
        """,
        "failed",
        "wrong failed exited",
    ),
    "eats all that it was sent": trick(
        """
        import os
        for fd in range(256):
            try:
                os.set_blocking(fd, False)
                while os.read(fd, 1 << 16): pass
            except OSError: pass
        """,
        "failed exited",
        "wrong failed exited timeout",
    ),
    "seeks, empties and locks every descriptor": trick(
        """
        import fcntl, os
        for fd in range(256):
            for work in (lambda: os.lseek(fd, 0, 0), lambda: os.ftruncate(fd, 0),
                         lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)):
                try: work()
                except OSError: pass
        """,
        "failed exited",
        "wrong failed exited timeout",
    ),
    "shuts every socket down": trick("""
        import socket
        for fd in range(256):
            try: end = socket.socket(fileno=fd)
            except OSError: continue
            try: end.shutdown(socket.SHUT_RDWR)
            except OSError: pass
            end.detach()
        """),
    "shrinks every pipe": trick(
        """
        import fcntl
        for fd in range(256):
            try: fcntl.fcntl(fd, 1031, 4096)
            except OSError: pass
        """,
        "failed",
        "wrong",
    ),
    # loops
    "loops": trick("while True: pass", "timeout", seconds=0.5),
    "loops and swallows everything": trick(
        """
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        "timeout",
        seconds=0.5,
    ),
    "loops in C: product": trick(
        "from itertools import product\nfor _ in product(range(10**4), repeat=9): pass", "timeout", seconds=0.5
    ),
    "loops in C: one call": trick("sum(range(10**13))", "timeout", seconds=0.5),
    "loops in C: a regular expression": trick("import re; re.match('(a*)*b', 'a' * 40)", "timeout", seconds=0.5),
    "loops in C: powers": trick("pow(3, 10**9)", "timeout memory failed", seconds=0.5),
    "loops in C: huge integer to text": trick(
        """
        import sys
        sys.set_int_max_str_digits(0)
        str(1 << 3 * 10**7)
        """,
        "timeout",
        seconds=0.5,
    ),
    "loops in C: text to huge integer": trick(
        """
        import sys
        sys.set_int_max_str_digits(0)
        int('7' * 3 * 10**7)
        """,
        "timeout",
        seconds=0.5,
    ),
    "loops in C: one call, waiting for an alarm": trick(
        """
        import os, signal
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        sum(range(10**13))
        """,
        "timeout",
        seconds=0.5,
    ),
    "text of a huge integer": trick("str(10**10**5)", "failed"),
    "ignores signals": trick(
        """
        import signal, time
        for number in signal.valid_signals():
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        time.sleep(60)
        """,
        "timeout",
        seconds=0.5,
    ),
    "blocks signals": trick(
        """
        import signal, time
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True: time.sleep(1)
        """,
        "timeout",
        seconds=0.5,
    ),
    "stops itself": trick("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout", seconds=0.5),
    "stops its whole group": trick(
        "import os, signal\nif os.getpgrp() == os.getpid(): os.killpg(0, signal.SIGSTOP)", "timeout failed", seconds=0.5
    ),
    "floods its output": trick("while True: print('x' * 1000)", "timeout", seconds=0.5),
    "floods its output past Python": trick(
        """
        import os
        while True: os.write(1, b'x' * 65536); os.write(2, b'x' * 65536)
        """,
        "timeout",
        seconds=0.5,
    ),
    "waits for input": trick(
        "import sys\nwhile True: sys.stdin.read(); sys.stdin.buffer.read()", "timeout failed", seconds=0.5
    ),
    "waits in a lock": trick(
        "import threading; threading.Lock().acquire() and threading.Event().wait()", "timeout", seconds=0.5
    ),
    "an endless import hook": trick(
        """
        import sys
        class Endless:
            def find_spec(self, *_):
                while True: pass
        sys.meta_path.insert(0, Endless())
        import unheard_of
        """,
        "timeout",
        seconds=0.5,
    ),
    "threads that never end": trick(
        """
        import threading, time
        def spin():
            while True: time.sleep(0.01)
        for n in range(6): threading.Thread(target=spin, daemon=n % 2 == 0).start()
        """,
        "failed",
        "wrong",
    ),
    "threads that keep the processor": trick(
        """
        import threading
        def spin():
            while True: pass
        for _ in range(3): threading.Thread(target=spin).start()
        """,
        "failed timeout",
        "wrong timeout",
        seconds=2.0,
    ),
    "an exception that takes for ever to tell": trick(
        """
        class Endless(Exception):
            def __str__(self):
                while True: pass
        raise Endless
        """,
        "timeout failed",
        seconds=0.5,
    ),
    "an exception with a lying class": trick(
        """
        class Meta(type):
            def __getattribute__(cls, name): raise SystemExit(0)
        class Lie(Exception, metaclass=Meta):
            def __getattribute__(self, name): raise SystemExit(0)
            def __str__(self): raise SystemExit(0)
        raise Lie
        """,
        "failed exited",
    ),
    "an exception with a name of another type": trick(
        """
        class Meta(type):
            __name__ = property(lambda cls: 7)
            __qualname__ = property(lambda cls: b'x')
        class Lie(Exception, metaclass=Meta): pass
        raise Lie
        """,
        "failed exited",
    ),
    "an exception with a huge text": trick("raise ValueError('x' * 10**8)", "failed"),
    "an exception whose text is no text": trick(
        """
        class Text(str):
            def __getitem__(self, _): raise SystemExit
            def encode(self, *_): return b'passed'
            def __format__(self, _): return 'passed'
        class Lie(Exception):
            def __str__(self): return Text('lie')
        raise Lie
        """,
        "failed exited",
    ),
    "an endless chain of exceptions": trick(
        """
        error = ValueError()
        error.__cause__ = error.__context__ = KeyError()
        error.__cause__.__cause__ = error
        raise error
        """,
        "failed",
    ),
    "an interrupt": trick("raise KeyboardInterrupt", "failed exited"),
    "an exception that is no Exception": trick("raise GeneratorExit", "failed exited"),
    # memory, stack, files, processes
    "memory at once": trick("x = [0] * 10**10", "memory"),
    "memory bit by bit": trick("x = []\nwhile True: x.append(bytearray(10**6))", "memory", memory_mb=128),
    "memory by mapping": trick("import mmap\nm = [mmap.mmap(-1, 1 << 24) for _ in range(100)]", "memory failed"),
    "memory swallowed again and again": trick(
        """
        kept = []
        for _ in range(10**4):
            try: kept.append(bytearray(10**8))
            except MemoryError: pass
        """,
        "failed memory timeout",
        "wrong memory failed timeout",
    ),
    "memory that no process has mapped": trick(
        """
        import os
        files = [os.memfd_create('xft-hostile') for _ in range(10)]
        for file in files:
            for _ in range(32): os.write(file, bytes(1 << 20))
        import time; time.sleep(3)
        """,
        "memory failed exited",
        memory_mb=128,
    ),
    "memory of many processes": trick(
        """
        import os, time
        for _ in range(3): os.fork()
        x = b'x' * (60 << 20)
        time.sleep(4)
        """,
        "memory failed",
        memory_mb=256,
        never_at=ROOT_FORKS,
    ),
    "deep recursion": trick("def f(n): return f(n + 1)\nf(0)", "failed"),
    "deep recursion without a limit": trick(
        """
        import sys
        sys.setrecursionlimit(10**9)
        def f(n): return f(n + 1)
        f(0)
        """,
        "exited memory failed timeout",
    ),
    "deep recursion in C": trick(
        """
        import sys
        sys.setrecursionlimit(10**9)
        class A:
            def __getattr__(self, name): return getattr(self, name + 'x')
        A().x
        """,
        "exited memory failed timeout",
    ),
    "deep nesting for the compiler": trick("eval('(' * 10**5 + ')' * 10**5)", "failed memory exited"),
    "deep nesting for the deallocator": trick(
        """
        x = None
        for _ in range(10**5): x = [x]
        del x
        """,
        "failed",
        "wrong",
    ),
    "a big file": trick(
        """
        with open('big', 'wb') as file:
            for _ in range(200): file.write(bytes(1 << 20))
        """,
        "failed exited",
    ),
    "many files": trick(
        """
        for n in range(20):
            with open(f'big{n}', 'wb') as file:
                for _ in range(16): file.write(bytes(1 << 20))
        import time; time.sleep(2)
        """,
        "failed exited",
        never_at={"unsafe": "nothing bounds the sum of its files there"},
    ),
    "many files that have no name any more": trick(
        """
        import os, time
        held = []
        for n in range(8):
            held.append(open(f'x{n}', 'wb'))
            os.unlink(f'x{n}')
            for _ in range(32): held[-1].write(bytes(1 << 20))
        time.sleep(2)
        """,
        "failed exited",
        never_at={"unsafe": "nothing bounds the sum of its files there"},
    ),
    "many small files": trick(
        """
        for n in range(60000): open(f'small{n}', 'wb').close()
        """,
        "failed exited timeout",
        never_at={"unsafe": "nothing bounds the number of its files there"},
    ),
    "many descriptors": trick("import os\nwhile True: os.dup(0)", "failed exited"),
    "200 processes": trick(
        """
        import os, time
        for _ in range(200):
            if not os.fork():
                time.sleep(30)
                os._exit(0)
        time.sleep(30)
        """,
        "failed",
        never_at=ROOT_FORKS,
    ),
    "300 threads": trick(
        """
        import threading, time
        for _ in range(300): threading.Thread(target=time.sleep, args=(30,)).start()
        """,
        "failed exited memory",
        "wrong failed exited memory",
    ),
    "a forked copy goes on": trick(
        """
        import os
        if os.fork(): os._exit(0)
        """,
        "exited failed",
        "exited failed wrong",
    ),
    "a forked copy waits for the end": trick(
        """
        import os, time
        if not os.fork():
            os.setsid()
            if os.fork(): os._exit(0)
            time.sleep(30)
        """,
        "failed",
        "wrong failed",
    ),
    # changing what the runner stands on
    "changes the builtins that check": trick(
        """
        import builtins
        builtins.isinstance = builtins.issubclass = builtins.callable = builtins.hasattr = lambda *_: True
        builtins.len = lambda _: 0
        builtins.type = builtins.id = lambda *_: int
        """,
        "failed exited memory",
        "wrong failed exited memory timeout",
    ),
    "changes the builtins that run": trick(
        """
        import builtins
        builtins.exec = builtins.compile = builtins.eval = builtins.getattr = lambda *_, **__: None
        builtins.print = builtins.repr = builtins.str = builtins.bytes = builtins.int = lambda *_, **__: 'passed'
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "changes the exceptions": trick(
        """
        import builtins
        builtins.BaseException = builtins.Exception = builtins.MemoryError = builtins.SystemExit = ZeroDivisionError
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "empties the builtins": trick("import builtins; builtins.__dict__.clear()", "failed exited", "wrong failed exited"),
    "empties the modules": trick("import sys; sys.modules.clear()", "failed exited", "wrong failed exited"),
    "empties every dictionary": trick("""
        import gc
        for each in gc.get_objects():
            if type(each) is dict: each.clear()
        """),
    "changes json": trick(
        """
        import json, json.encoder
        json.dumps = json.encoder.encode_basestring_ascii = lambda *_, **__: '2'
        json.JSONEncoder.encode = json.JSONEncoder.default = lambda *_: '2'
        json.JSONEncoder.iterencode = lambda *_, **__: iter(['2'])
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "changes os.write": trick(
        """
        import os
        def write(fd, data, real=os.write):
            return real(fd, bytes(data).replace(b'failed', b'passed')) and len(data)
        os.write = write
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "changes os.write to say nothing": trick(
        "import os; os.write = os.writev = lambda fd, data: len(data)",
        "failed exited timeout",
        "wrong failed exited timeout",
        seconds=1.0,
    ),
    "changes os._exit": trick("""
        import os, sys
        os._exit = sys.exit = lambda *_: None
        os.kill = os.killpg = os.getpid = os.getppid = os.fork = os.wait = os.waitpid = lambda *_: 0
        """),
    "changes every module's functions": trick("""
        import sys, types
        for name, module in list(sys.modules.items()):
            if name in ('sys', 'types', 'builtins'): continue
            for key, value in list(vars(module).items()):
                if isinstance(value, types.FunctionType):
                    try: setattr(module, key, lambda *_, **__: b'passed')
                    except Exception: pass
        """),
    "changes the code of every function": trick("""
        import gc, types
        def forged(*_, **__): return b'passed'
        for each in gc.get_objects():
            if type(each) is types.FunctionType and each.__closure__ is None and each is not forged:
                each.__code__ = forged.__code__
        """),
    "changes codecs": trick(
        """
        import codecs, encodings.utf_8
        encodings.utf_8.encode = codecs.utf_8_encode = lambda text, *_: (b'passed', len(text))
        codecs.register(lambda name: codecs.CodecInfo(encodings.utf_8.encode, encodings.utf_8.encode))
        """,
        "failed",
        "wrong failed exited",
    ),
    "changes struct and len of messages": trick(
        """
        import struct
        struct.pack = lambda *_: b'\\xff' * 8
        """,
        "failed",
        "wrong failed exited timeout",
        seconds=1.0,
    ),
    "traces": trick(
        """
        import sys, threading
        def trace(frame, event, value): return trace
        sys.settrace(trace); sys.setprofile(trace)
        threading.settrace(trace); threading.setprofile(trace)
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "raises from a trace": trick(
        """
        import sys
        def trace(frame, event, value): raise SystemExit(0)
        sys.setprofile(trace)
        """,
        "failed exited",
    ),
    "raises from an audit hook": trick(
        """
        import sys
        def hook(event, arguments): raise SystemExit(0)
        sys.addaudithook(hook)
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "a callback of the collector": trick(
        """
        import gc, os
        gc.set_threshold(1)
        gc.callbacks.append(lambda *_: os._exit(0))
        """,
        "failed exited",
        "wrong failed exited",
    ),
    "an exit hidden in a warning": trick(
        """
        import warnings
        warnings.simplefilter('error')
        """,
        "failed",
        "wrong",
    ),
    "changes limits": trick("""
        import resource
        for which in range(16):
            try: resource.setrlimit(which, (0, 0))
            except (OSError, ValueError): pass
        """),
    "lifts limits": trick(
        """
        import resource
        for which in range(16):
            try: resource.setrlimit(which, (resource.RLIM_INFINITY,) * 2)
            except (OSError, ValueError): pass
        x = bytearray(10**9)
        """,
        "memory",
    ),
    "switches threads never": trick(
        """
        import sys, threading
        sys.setswitchinterval(10**6)
        def spin():
            while True: pass
        threading.Thread(target=spin, daemon=True).start()
        """,
        "failed timeout",
        "wrong timeout",
        seconds=1.0,
    ),
    "syntax error": trick("def f(:", "failed"),
    "a lone surrogate in the source": trick("x = '\ud800'", "failed"),
    "a null byte in the source": trick("x = 1\0", "failed"),
    "a source of another encoding": trick("# coding: rot13\nvzcbeg bf", "failed", "wrong failed"),
    "indentation for the compiler": trick(
        "\n".join(" " * n + "if 1:" for n in range(200)) + "\n" + " " * 200 + "pass", "failed"
    ),
    "a constant for the compiler": trick("x = 'x' * 10**10 + 9 ** 9 ** 9", "memory failed timeout", seconds=0.5),
}

# Bytes that a candidate writes to every descriptor that it has: replies of its own making.
FORGED: dict[str, str] = {
    "verdict": "b'passed\\n'",
    "verdict and token": "b'passed ' + b'0' * 32",
    "supervisor's report": "b'ready\\nexit 0\\n'",
    "supervisor's fault": "b'fault OSError: no more processes\\n'",
    "zeros": "bytes(64)",
    "ones": "b'\\xff' * 64",
    "noise": "os.urandom(4096)",
    "a huge length, little": "(2**63 - 1).to_bytes(8, 'little')",
    "a huge length, big": "(2**31 - 1).to_bytes(4, 'big')",
    "a negative length": "(-1).to_bytes(8, 'big', signed=True)",
    "half a message": "(100).to_bytes(8, 'little') + b'{\"'",
    "a line without an end": "b'9' * 5000",
    "a number of many digits": "b'9' * 200000 + b'\\n'",
    "deep nesting": "b'[' * 200000 + b'\\n'",
    "deep objects": "b'{\"a\":' * 100000 + b'\\n'",
    "a flood": "b'a' * 10**7",
    "json": 'b\'{"status": "passed", "value": 2, "at": 0}\\n\'',
    "words of json": "b'NaN\\nInfinity\\n-Infinity\\nnull\\ntrue\\n'",
    "no text": "b'\\x80\\xfe\\xc3(\\n' * 10",
}

SPRAY = """
import os
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        os.write(fd, {data})
    except OSError: pass
"""

# --- functions: each is called with 1, then 2, and asked for its argument plus one ------------------------------------

FUNCTIONS: dict[str, Trick] = {
    "nothing": trick("def f(x): pass", call="wrong"),
    "text": trick("def f(x): return str(x + 1)", call="wrong"),
    "equal to everything": trick(
        """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(x): return Any()
        """,
        call="wrong",
    ),
    "an integer with lying methods": trick(
        """
        class Lie(int):
            def __eq__(self, other): return True
            def __int__(self): return 2
            def __index__(self): return 2
            def __repr__(self): return '2'
            __str__ = __format__ = __repr__
            def __hash__(self): return 2
            def __reduce_ex__(self, _): return (int, (2,))
            def __abs__(self): return 2
            def __add__(self, _): return 2
            def __and__(self, _): return 2
            def bit_length(self): return 2
            def to_bytes(self, *_, **__): return b'\\x02'
            __class__ = int
        def f(x): return Lie(7)
        """,
        call="wrong",
    ),
    "an object with a lying class": trick(
        """
        class Lie:
            __class__ = int
            def __eq__(self, other): return True
            def __index__(self): return 2
            __int__ = __index__
            def __repr__(self): return '2'
            def __reduce_ex__(self, _): return (int, (2,))
        def f(x): return Lie()
        """,
        call="wrong",
    ),
    "an object that has every attribute": trick(
        """
        class All:
            def __getattr__(self, name): return self
            def __getattribute__(self, name): return self
            def __call__(self, *_, **__): return 2
            def __iter__(self): return iter([2])
            def __len__(self): return 1
        def f(x): return All()
        """,
        call="wrong failed",
    ),
    "an object that raises at every touch": trick(
        """
        class Meta(type):
            def __getattribute__(cls, name): raise SystemExit(0)
            def __instancecheck__(cls, each): raise SystemExit(0)
            def __eq__(cls, other): raise SystemExit(0)
            def __hash__(cls): raise SystemExit(0)
            def __repr__(cls): raise SystemExit(0)
        class Touchy(metaclass=Meta):
            def __getattribute__(self, name): raise SystemExit(0)
            def __eq__(self, other): raise SystemExit(0)
            def __hash__(self): raise SystemExit(0)
            def __repr__(self): raise SystemExit(0)
            def __bool__(self): raise SystemExit(0)
        def f(x): return Touchy()
        """,
        call="wrong failed exited",
    ),
    "a class with a name of its own": trick(
        """
        class Meta(type):
            __name__ = property(lambda cls: 'x' * 10**8)
            __module__ = property(lambda cls: 1 / 0)
        class Odd(metaclass=Meta): pass
        def f(x): return Odd()
        """,
        call="wrong failed memory",
    ),
    "a class called int": trick("int_ = type('int', (), {})\ndef f(x): return int_()", call="wrong"),
    "a class with a name that is no text": trick(
        "odd = type('\\ud800\\x00\\x1b', (), {})\ndef f(x): return odd()", call="wrong failed"
    ),
    "a float in place of an integer": trick("def f(x): return x + 1.5", call="wrong"),
    "a list that iterates over other things": trick(
        """
        class Lie(list):
            def __iter__(self): return iter([2])
            def __len__(self): return 1
            def __getitem__(self, _): return 2
        def f(x): return Lie([7])
        """,
        call="wrong",
    ),
    "a list without an end": trick(
        """
        import itertools
        class Endless(list):
            def __iter__(self): return itertools.count()
            def __len__(self): return 2**62
        def f(x): return Endless([7])
        """,
        call="wrong",
    ),
    "a dictionary with a lying view": trick(
        """
        class Lie(dict):
            def items(self): return [(0, 2)]
            def keys(self): return [0]
            def __iter__(self): return iter([0])
            def __getitem__(self, _): return 2
            def __missing__(self, _): return 2
        def f(x): return Lie({1: 1})
        """,
        call="wrong",
    ),
    "a text with lying methods": trick(
        """
        class Lie(str):
            def encode(self, *_): return b'2'
            def __str__(self): return '2'
            def __iter__(self): return iter('2')
            def translate(self, _): return '2'
        def f(x): return Lie('seven')
        """,
        call="wrong",
    ),
    "a float with lying methods": trick(
        """
        class Lie(float):
            def __repr__(self): return '2'
            __str__ = hex = __repr__
            def as_integer_ratio(self): return (2, 1)
        def f(x): return Lie(7.5)
        """,
        call="wrong",
    ),
    "bytes with lying methods": trick(
        """
        class Lie(bytes):
            def hex(self, *_): return '32'
            def decode(self, *_): return '2'
            def __bytes__(self): return b'2'
        def f(x): return Lie(b'7')
        """,
        call="wrong",
    ),
    "a complex number with lying parts": trick(
        """
        class Lie(complex):
            real = imag = 2
            def __complex__(self): return 2 + 0j
        def f(x): return Lie(7j)
        """,
        call="wrong",
    ),
    "a generator": trick("def f(x): yield x + 1", call="wrong"),
    "an iterator": trick("def f(x): return iter([x + 1])", call="wrong"),
    "an iterator without an end": trick("import itertools\ndef f(x): return itertools.count()", call="wrong"),
    "a coroutine": trick("async def f(x): return x + 1", call="wrong"),
    "a range": trick("def f(x): return range(10**12)", call="wrong"),
    "itself": trick("def f(x): return f", call="wrong"),
    "a module": trick("import sys\ndef f(x): return sys", call="wrong"),
    "not implemented": trick("def f(x): return NotImplemented", call="wrong"),
    "a list that holds itself": trick("def f(x):\n    l = [1]; l.append(l)\n    return l", call="wrong failed"),
    "a dictionary that holds itself": trick("def f(x):\n    d = {}; d[1] = d\n    return d", call="wrong failed"),
    "a deep list": trick(
        """
        def f(x):
            l = []
            for _ in range(10**5): l = [l]
            return l
        """,
        call="wrong failed",
    ),
    "a list of moderate depth": trick(
        """
        def f(x):
            l = []
            for _ in range(900): l = [l]
            return l
        """,
        call="wrong failed",
    ),
    "a small list with a huge text": trick(
        """
        def f(x):
            l = [x]
            for _ in range(60): l = [l, l]
            return l
        """,
        call="wrong failed timeout",
        seconds=2.0,
    ),
    "a wide answer": trick("def f(x): return [0] * 10**6", call="wrong failed memory"),
    "a long text": trick("def f(x): return 'x' * 10**8", call="wrong failed memory", memory_mb=1024),
    "a huge integer": trick("def f(x): return 10**10**5", call="wrong failed"),
    "a huge integer of other base": trick("def f(x): return 1 << 10**8", call="wrong failed memory"),
    "a huge integer without a limit": trick(
        """
        import sys
        sys.set_int_max_str_digits(0)
        def f(x): return 10**10**6
        """,
        call="wrong failed timeout",
    ),
    "odd numbers": trick("def f(x): return [float('nan'), float('-inf'), -0.0, complex('nan+infj')]", call="wrong"),
    "a lone surrogate": trick("def f(x): return '\\ud800\\x00'", call="wrong"),
    "keys of every type": trick(
        "def f(x): return {None: 1, (1, ('a',)): 2, frozenset([3]): 3, float('nan'): 4, b'x': 5, ...: 6}", call="wrong"
    ),
    "keys that lie": trick(
        """
        class Key:
            def __hash__(self): return 1
            def __eq__(self, other): return True
        def f(x): return {Key(): 1, 7: 2}
        """,
        call="wrong",
    ),
    "colliding keys": trick(
        """
        def f(x): return {n * (2**61 - 1): 0 for n in range(2000)}
        """,
        call="wrong",
    ),
    "a set of mixed types": trick("def f(x): return {1, 'a', (2,), None, frozenset({4})}", call="wrong"),
    "waits for the answer to be asked for": trick(
        """
        import threading, time
        class Late(list): pass
        def f(x):
            late = Late([7])
            def change():
                for _ in range(10**5): late[0] = 2 if late[0] == 7 else 7
            threading.Thread(target=change, daemon=True).start()
            return late
        """,
        call="wrong",
    ),
    "leaves in the second call": trick(
        """
        import os
        def f(x):
            if x == 2: os._exit(0)
            return x + 1
        """,
        call="exited",
    ),
    "quits in the second call": trick(
        """
        def f(x):
            if x == 2: raise SystemExit
            return x + 1
        """,
        call="exited failed",
    ),
    "wrong in the second call": trick("def f(x): return 2", call="wrong"),
    "loops in the second call": trick(
        """
        def f(x):
            while x == 2: pass
            return x + 1
        """,
        call="timeout",
        seconds=0.5,
    ),
    "answers twice": trick(
        """
        import os
        def f(x):
            if x == 1: os.fork()
            return 2
        """,
        call="wrong failed exited",
    ),
    "gives itself for an exception": trick("def f(x): raise Exception(f)", call="failed"),
    "is not a function": trick("f = 2", call="failed"),
    "is not there": trick("def g(x): return x + 1", call="failed"),
    "is a property of the module": trick(
        """
        import sys, types
        class Module(types.ModuleType):
            @property
            def f(self): raise SystemExit(0)
        sys.modules[__name__].__class__ = Module
        """,
        call="failed exited",
    ),
    "is a callable object that lies": trick(
        """
        class Call:
            def __call__(self, x): return self
            def __eq__(self, other): return True
            __class__ = int
        f = Call()
        """,
        call="wrong",
    ),
    "takes other arguments": trick("def f(): return 2", call="failed"),
    "rewrites the small integers": trick(
        """
        import ctypes, sys
        size = sys.getsizeof(7)
        def f(x):
            ctypes.memmove(id(7) + 16, id(2) + 16, size - 16)
            return 7
        """,
        call="wrong failed exited timeout",
    ),
}

# --- looking for what is hidden ---------------------------------------------------------------------------------------

# In `run` the tests and the proof of having reached the end are in the candidate's process: the first passes there.
SEARCHES: dict[str, str] = {
    "frames": """
        import os, sys
        found, frame = [], sys._getframe()
        while frame:
            found += list(frame.f_locals.values()) + list(frame.f_globals.values())
            frame = frame.f_back
        """,
    "collector": """
        import gc
        found = []
        for each in gc.get_objects():
            if type(each) in (list, tuple): found += each
            elif type(each) is dict: found += [*each.keys(), *each.values()]
        """,
    "modules": """
        import sys
        found = [value for module in list(sys.modules.values()) for value in list(vars(module).values())]
        """,
    "memory": """
        import re
        found = []
        with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
            for line in maps:
                span, rights, *_ = line.split()
                start, end = (int(part, 16) for part in span.split('-'))
                if rights.startswith('rw') and end - start < 1 << 27:
                    try:
                        memory.seek(start)
                        found += re.findall(rb'[0-9a-f]{32}', memory.read(end - start))
                    except (OSError, ValueError): pass
        """,
}

FORGE = """
import os, struct
for each in sorted(found, key=lambda each: not (type(each) is bytes and len(each) == 16)):
    text = each.encode('utf-8', 'replace') if type(each) is str else each
    if type(text) in (bytes, bytearray) and 16 <= len(text) <= 64:
        for fd in range(3, 64):
            for reply in (struct.pack('=cI', b'p', len(text)) + bytes(text), b'passed ' + bytes(text)):
                try: os.set_blocking(fd, False); os.write(fd, reply)
                except OSError: pass
os._exit(0)
"""

# --- odd, but harmless: a right program after one of these passes -----------------------------------------------------

ODDITIES: dict[str, str] = {
    "chatty": "import sys\nfor _ in range(20000): print('x' * 100); print('y', file=sys.stderr)",
    "streams replaced": "import io, sys; sys.stdout = sys.stderr = io.StringIO()",
    "streams closed": "import sys; sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
    "standard descriptors closed": "import os; os.closerange(0, 3)",
    "standard descriptors reused": "import os; os.closerange(0, 3); files = [open(os.devnull) for _ in range(3)]",
    "a daemon for ever": "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "a thread for ever": "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
    "exit hooks": "import atexit, time; atexit.register(time.sleep, 60); atexit.register(lambda: 1 / 0)",
    "a slow finalizer": "import time\nclass A:\n    def __del__(self): time.sleep(60)\na = A()",
    "tracing": "import sys\ndef trace(*_): return trace\nsys.settrace(trace)",
    "warnings are errors": "import warnings; warnings.simplefilter('error')",
    "no collector": "import gc; gc.disable(); gc.freeze()",
    "another recursion limit": "import sys; sys.setrecursionlimit(5000)",
    "a low recursion limit": "import sys; sys.setrecursionlimit(60)",
    "digits without a limit": "import sys; sys.set_int_max_str_digits(0)",
    "another folder": "import os; os.chdir('/')",
    "another environment": "import os; os.environ.clear()",
    "another path": "import sys; sys.path.clear(); sys.argv.clear()",
    "signals": "import signal; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_DFL)",
    "shadowed names": "json = os = sys = print = exec = int = list = type = len = encode = BaseException = None",
    "names of the runner": "def main(*_): 1 / 0\nrun = answer = candidate = encode = token = report = decode = main",
    "a demonstration": "if __name__ == '__main__':\n    raise SystemExit(1)",
    "exceptions caught": "try:\n    raise SystemExit\nexcept SystemExit: pass\ntry: 1 / 0\nexcept Exception: pass",
    "recursion caught": "def g(n): return g(n + 1)\ntry: g(0)\nexcept RecursionError: pass",
    "memory caught": "try: x = bytearray(10**11)\nexcept MemoryError: pass",
    "future annotations": "from __future__ import annotations\ndef g(x: nothing) -> nothing: ...",
    "a dataclass": "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nassert P(1) == P(1)",
    "a name for itself": "import sys; me = sys.modules[__name__]; assert me.__dict__ is globals()",
    "pickles its own class": "import pickle\nclass P: pass\nassert type(pickle.loads(pickle.dumps(P()))) is P",
    "seeds and contexts": "import random, decimal, locale; random.seed(0); decimal.getcontext().prec = 2",
    "windows lines": "x = 1\r\nif x:\r\n    y = 2\r\n",
    "deep lists freed": "x = None\nfor _ in range(10**5): x = [x]\ndel x",
}

# --- state that one candidate may leave for the next ------------------------------------------------------------------

# One leaves a trace wherever it can, the other returns what it finds, and the state that it starts in.
LEAVE = """
import ctypes, os, sys
C = ctypes.CDLL(None)
places = ['.', '/tmp', '/var/tmp', '/dev/shm', '/run', '/run/lock', '/dev', '/', os.environ.get('HOME', '/'),
          os.environ.get('TMPDIR', '/'), os.path.expanduser('~')]
for place in places:
    try: open(place + '/xft-hostile-left', 'w').close()
    except OSError: pass
    try: os.mkdir(place + '/xft-hostile-folder')
    except OSError: pass
C.shmget(0x78667469, 4096, 0o1600); C.msgget(0x78667469, 0o1600); C.semget(0x78667469, 1, 0o1600)
C.syscall(248, b'user', b'xft-hostile', b'left', 4, -3)  # add_key to the session
for name in list(sys.modules):
    module = sys.modules[name]
    try: module.xft_hostile = True
    except Exception: pass
os.environ['XFT_HOSTILE'] = '1'
for work in (lambda: os.nice(5), lambda: os.umask(0o777), lambda: os.sched_setaffinity(0, {0}),
             lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 15)):
    try: work()
    except OSError: pass
for name in ('open', 'len', 'exec', 'compile', 'print', 'isinstance'):
    setattr(__import__('builtins'), name, lambda *_, **__: None)
sys.path[:] = ['/xft-hostile']
sys.setrecursionlimit(50)
"""

FIND = """
def f(_):
    import ctypes, os, sys
    C = ctypes.CDLL(None)
    found = []
    places = ['.', '/tmp', '/var/tmp', '/dev/shm', '/run', '/run/lock', '/dev', '/', os.environ.get('HOME', '/'),
              os.environ.get('TMPDIR', '/'), os.path.expanduser('~')]
    for place in places:
        for name in ('xft-hostile-left', 'xft-hostile-folder'):
            if os.path.lexists(place + '/' + name): found.append(place + '/' + name)
    shared = {'shm': C.shmget(0x78667469, 4096, 0), 'msg': C.msgget(0x78667469, 0), 'sem': C.semget(0x78667469, 1, 0)}
    found += [name for name, identity in shared.items() if identity != -1]
    if C.syscall(249, b'user', b'xft-hostile', None, -3) != -1: found.append('key')
    found += [name for name, module in list(sys.modules.items()) if hasattr(module, 'xft_hostile')]
    if 'XFT_HOSTILE' in os.environ: found.append('environ')
    umask = os.umask(0o22)
    return found, [
        os.getpriority(os.PRIO_PROCESS, 0), umask, sorted(os.sched_getaffinity(0)), sys.getrecursionlimit(), sys.path,
        dict(os.environ), os.getcwd(), sorted(os.listdir('/proc/self/fd')), sorted(sys.modules),
    ]
"""
