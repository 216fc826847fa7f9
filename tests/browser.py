"""A headless Chromium that tests drive: the DevTools protocol over a pipe, with nothing but the standard library."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

REQUIRED = "CLIPBIAS_REQUIRE_BROWSER"  # set to 1 where a missing browser is a failure and no reason to skip
_SECONDS = 60
_CODES = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36}
_CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def executable():
    """The browser's path; skips, or fails where it is required, if there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        message = "there is no chromium to look at pages with; install it (apt-get install chromium)."
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(message)
        pytest.skip(message)
    return program


class Browser:
    """One page of a browser. What scripts throw or write to the console is kept in `complaints`.

    It has no network, or with `local` that of this machine alone; what it asks for, from there or from elsewhere, is
    kept in `requests`.
    """

    def __init__(self, folder, *, local=False):
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        options = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder}", "about:blank"]
        options[:0] = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"] if local else []
        # A pipe's ends are 3 and 4 for the browser; a shell puts them there.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{requests} 4>&{answers}', "bash", executable(), *options],
            pass_fds=(requests, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(requests), os.close(answers)
        self._sent = 0
        self._unread = b""
        self._session = None
        self.complaints = []
        self._loaded = 0
        self.requests = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        speed = dict(latency=0, downloadThroughput=-1 if local else 0, uploadThroughput=-1 if local else 0)
        self.call("Network.emulateNetworkConditions", offline=not local, **speed)

    def close(self):
        self._session = None
        with contextlib.suppress(EOFError):  # it may be gone before it answers
            self.call("Browser.close")
        self._process.wait(_SECONDS)
        os.close(self._requests), os.close(self._answers)

    def call(self, method, **parameters):
        """What the browser answers to a command of the protocol."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._sent:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _next(self):
        while b"\0" not in self._unread:
            assert select.select([self._answers], [], [], _SECONDS)[0], "the browser does not answer"
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise EOFError("the browser ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        parameters = event.get("params", {})
        if event.get("method") == "Page.loadEventFired":
            self._loaded += 1
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"])
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(parameters["args"])
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"])

    def open(self, path, *, fragment="", width=1200, height=900, scheme="light", scripts=True, media="screen"):
        """Opens a page, a file's or one at an address, anew in a window of so many CSS pixels."""
        loaded = self._loaded
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url="about:blank")  # another fragment of the same page would not load it
        while self._loaded == loaded:
            self._note(self._next())
        loaded = self._loaded
        self.call("Page.navigate", url=(path if isinstance(path, str) else path.resolve().as_uri()) + fragment)
        while self._loaded == loaded:
            self._note(self._next())

    def evaluate(self, expression):
        """A script's value, once it is there."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait_for(self, expression, seconds=_SECONDS):
        """Waits until a script's value is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, *keys):
        """Keys one after another, as a keyboard sends them."""
        for key in keys:
            known = {"key": key, "windowsVirtualKeyCode": _CODES[key], "code": key}
            known |= {"text": "\r"} if key == "Enter" else {"text": " ", "code": "Space"} if key == " " else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **known)
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def mouse(self, selector, *, across=0.5, down=0.5, click=False):
        """Moves the pointer to a place in an element, in shares of its size, and clicks there."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]; })()"
        )
        place = {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def choose_file(self, selector, path):
        """Gives a field for files one."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert node, f"there is no {selector}"
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
