"""Pages in headless Chromium, spoken to by its debugging protocol: what a page shows, and what its scripts complain of."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no chromium here (on Debian: apt-get install chromium)"

_TEXTS = """(() => {
  const walk = (node) => node.nodeType === Node.TEXT_NODE ? node.data + " "
    : ["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName) ? ""
    : [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].map(walk).join("");
  return walk(document.body).replace(/\\s+/g, " ");
})()"""


def shown_by(
    pages: Mapping[str, Sequence[str]], profile: Path, seconds: float = 60.0
) -> tuple[dict[str, str], list[str]]:
    """Opens pages one after the other in one browser.

    Args:
        pages: Address -> words that are waited for.
        profile: Folder of the browser's own files.
        seconds: For which the words of a page are waited for.

    Returns:
        Address -> the texts of the page, shadow trees among them; and the errors of all scripts.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    with subprocess.Popen([str(BROWSER), *options, "about:blank"], stderr=subprocess.PIPE, text=True) as browser:
        try:
            assert browser.stderr is not None
            line = next(line for line in browser.stderr if "DevTools listening on" in line)
            (port,) = re.findall(r":(\d+)/", line)
            return asyncio.run(_visit(int(port), pages, seconds))
        finally:
            browser.kill()


async def _visit(port: int, pages: Mapping[str, Sequence[str]], seconds: float) -> tuple[dict[str, str], list[str]]:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://localhost:{port}/json/list") as answer:
            (tab,) = [one for one in await answer.json(content_type=None) if one["type"] == "page"]
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = _Page(socket)
            for domain in ("Runtime", "Log", "Page"):
                await page.call(f"{domain}.enable")
            found = {address: await page.open(address, words, seconds) for address, words in pages.items()}
            return found, page.errors


class _Page:
    """A tab of the browser."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0
        self.errors: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            said = await self.socket.receive_json()
            if said.get("id") == self.number:
                result: dict[str, Any] = said["result"]
                return result
            self._listen(said)

    def _listen(self, said: dict[str, Any]) -> None:
        parameters = said["params"]
        if said["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        if said["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.errors.append(str(parameters["args"]))
        if said["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(str(parameters["entry"]))

    async def open(self, address: str, words: Sequence[str], seconds: float) -> str:
        """The texts of a page, once it shows all the words."""
        await self.call("Page.navigate", url="about:blank")  # an address that differs behind # alone loads nothing
        await self.call("Page.navigate", url=address)
        text = ""
        for _ in range(int(seconds / 0.25)):
            await asyncio.sleep(0.25)
            text = (await self.call("Runtime.evaluate", expression=_TEXTS))["result"].get("value", "")
            if all(word in text for word in words):
                break
        return text
