"use strict";
// What the page shows stands in its address: #problem=ID&filter=missed&search=eggs&sort=strategies.1.desc&theme=dark
// An address without "=" is the name of a section: what was shown before stays.

const address = {
  last: "",
  get(name) {
    return new URLSearchParams(this.text()).get(name) ?? "";
  },
  // Changes some of the words; those that are empty leave. Going back leads to the problem before.
  set(changes, lasting = false) {
    const words = new URLSearchParams(this.text());
    for (const [name, value] of Object.entries(changes)) value === "" ? words.delete(name) : words.set(name, value);
    const target = "#" + words.toString();
    if (target === location.hash) return;
    lasting ? history.pushState(null, "", target) : history.replaceState(null, "", target);
    window.dispatchEvent(new Event("hashchange"));
  },
  text() {
    if (location.hash === "" || location.hash.includes("=")) this.last = location.hash.slice(1);
    return this.last;
  },
};

// Makes an element: attributes by name, children as elements or as text, which stays text whatever is in it.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "title", "rect"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const byId = (id) => document.getElementById(id);

function applyTheme() {
  const theme = address.get("theme");
  theme === "" ? delete document.documentElement.dataset.theme : (document.documentElement.dataset.theme = theme);
}

byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const order = dark ? ["", "light"] : ["", "dark"];
  address.set({ theme: order[(order.indexOf(address.get("theme")) + 1) % 2] });
});
window.addEventListener("hashchange", applyTheme);
applyTheme();
