"""A program's logging is as it was: before and after the vendor's package is imported, and while it runs."""

import json

from support.lite2_board import MODELS, REAL, Board

PROGRAM = """
import io, json, logging, os, sys, warnings
from pathlib import Path

class Handler(logging.StreamHandler):
    pass

class Logger(logging.Logger):
    pass

stream = io.StringIO()
logging.basicConfig(level=logging.INFO, handlers=[Handler(stream)], format="%(levelname)s %(name)s %(message)s")
logging.setLoggerClass(Logger)
logging.addLevelName(25, "NOTICE")
mine = logging.getLogger("mine")
mine.setLevel(logging.ERROR)
mine.addFilter(lambda record: True)
logging.getLogger("quiet").disabled = True
logging.lastResort = None

def state():
    loggers = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
    return repr((
        {n: (type(x), x.level, x.propagate, x.disabled, x.handlers, x.filters) for n, x in loggers.items()
         if isinstance(x, logging.Logger) and n in ("", "mine", "quiet")},
        logging._levelToName, logging._nameToLevel, id(logging._levelToName), logging.getLoggerClass(),
        logging.Logger.manager.loggerClass, logging.getLogRecordFactory(), logging.Logger.manager.disable,
        logging.raiseExceptions, logging.lastResort, [(h.level, h.formatter) for h in logging.getLogger().handlers],
        warnings.filters, sys.excepthook, sys.stdout, sys.stderr, os.getcwd(), dict(os.environ),
    ))

settings = json.loads(sys.argv[1]) if len(sys.argv) > 1 else json.loads(os.environ["SETTINGS"])
import numpy as np
from ort_rknn.adapter import CallForm, LoadSettings, ModelSource, PortForm, Query
from ort_rknn_lite2 import Lite2Adapter
if settings["library"]:
    sys.path.insert(0, settings["site"])
    from support import fake_rknnlite
    fake_rknnlite.LIBRARY = settings["library"]

before = state()
adapter = Lite2Adapter(Path(settings["root"]))
(device,) = adapter.find(Query(environ={})).devices
assert "rknnlite" not in sys.modules
model = adapter.load(device, ModelSource(path=settings["model"]), LoadSettings())
assert "rknnlite.api" in sys.modules
assert state() == before, (before, state())
context = model.context(2)
x, y = np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 8, 16, 16), np.float32)
form = CallForm(
    (PortForm("float32", "NCHW", x.shape, x.nbytes),), (PortForm("float32", "NCHW", y.shape, y.nbytes),)
)
for _ in range(3):
    context.run(form, (x.ctypes.data,), (y.ctypes.data,))
try:
    adapter.load(device, ModelSource(data=b"garbage"), LoadSettings())
except Exception as error:
    assert "rknn_init failed" in str(error), error
else:
    raise SystemExit("garbage was loaded")
assert state() == before, (before, state())
mine.error("one %s", "word")
logging.getLogger("new").setLevel("INFO")
logging.getLogger("new").warning("two")
assert stream.getvalue() == "ERROR mine one word\\nWARNING new two\\n", stream.getvalue()

# The program's own RKNNLite speaks as loudly as it was told to, and what it says while ours works is not swallowed.
from rknnlite.api import RKNNLite
theirs = logging.getLogger("acuityLogger")
own = RKNNLite(verbose=True)
loud = theirs.handlers[0].level
theirs.handlers[0].stream = heard = io.StringIO()
model.context(1).close()
model.close()
assert theirs.handlers[0].level == loud == logging.DEBUG, (loud, theirs.handlers)
assert heard.getvalue() == ""
assert own.load_rknn("/nowhere.rknn") == -1
assert "Invalid RKNN model path: /nowhere.rknn" in heard.getvalue()
print("all well")
"""


def test_nothing_of_the_program_s_changes_and_nothing_is_printed(tmp_path, monkeypatch, python):
    board = Board(tmp_path, monkeypatch)
    settings = {
        "root": str(board.root),
        "library": "" if REAL else str(board.npu.library),
        "site": str(tmp_path / "site"),
        "model": str(MODELS / "conv_f16.rk3588.rknn"),
    }
    env = {"SETTINGS": json.dumps(settings)}
    # The one line on stderr is what the program's own loud object says when it is made.
    said = python(PROGRAM, env=env, quiet=False, timeout=100)
    assert said.splitlines()[-1] == "all well"
