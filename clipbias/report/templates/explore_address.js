"use strict";

/**
 * The view in the page's address, `#explore/layer=2&order=likelihood-gain`: a link, or the browser's way back, leads to it again.
 * What is as it was at first is left out.
 *
 * `current()` has the values of all fields as texts; `apply(values, asked)` shows a view, where `asked` are the fields
 * that stand in the address.
 */
function exploreAddress(current, apply) {
  const START = "#explore/";
  const WAIT = 150; // milliseconds without a change before it is one that one can go back from
  const initial = current();
  let waiting = 0;
  let written = null; // an address of which the browser has not told yet that it changed

  function address() {
    const changed = Object.entries(current()).filter(([name, value]) => value !== initial[name]);
    return START + new URLSearchParams(changed);
  }

  function write() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const [to, from] = [address(), location.hash];
      if (to === from || (to === START && from === "")) return;
      location.hash = to;
      written = location.hash;
    }, WAIT);
  }

  function read() {
    const here = location.hash;
    const own = here === written;
    written = null;
    if (own) return true; // what was chosen since then stays
    if (here !== "" && !here.startsWith(START)) return false; // of another section
    clearTimeout(waiting);
    const asked = Object.fromEntries(new URLSearchParams(here.slice(START.length)));
    if (here !== address()) apply({ ...initial, ...asked }, asked);
    if (here !== "") section.open = true;
    return here !== "";
  }

  const section = document.getElementById("explore");
  addEventListener("hashchange", read);
  if (read()) section.scrollIntoView();
  return write;
}
