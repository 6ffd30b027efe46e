"use strict";
// The browser over problems: a list that filters and searches, and beside it the problem that is chosen.

const LIST_LENGTH = 50;

class Browser {
  constructor(index) {
    this.index = index;
    this.found = [];
    byId("sample").textContent = this.sampleNote();
    for (const [name, label, count] of index.filters) this.nameFilter(name, label, count);
    byId("search").addEventListener("input", (event) => address.set({ search: event.target.value }));
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.show());
  }

  sampleNote() {
    const { problems, num_problems: all } = this.index;
    return problems.length === all ? "" : `The page would be too large with all problems in it: it holds ${problems.length.toLocaleString("en")} ` +
      `of ${all.toLocaleString("en")}, chosen by a hash of their ids alone. The counts of the filters are of all. ` +
      "Any problem is shown by: python evaluate.py inspect RUN PROBLEM";
  }

  nameFilter(name, label, count) {
    const button = document.querySelector(`[data-filter="${name}"]`);
    button.replaceChildren(label, make("small", {}, ` ${count.toLocaleString("en")}`));
    button.disabled = count === 0;
    button.addEventListener("click", () => address.set({ filter: name === "all" ? "" : name, problem: "" }));
  }

  // All that the address says: the filter, the words, and the problem; where it names none, the first of the list.
  async show() {
    const name = address.get("filter") || "all";
    const bit = Math.max(0, this.index.filters.findIndex((filter) => filter[0] === name));
    const words = address.get("search").toLowerCase();
    this.found = this.index.problems.filter((row) => (row.mask >> bit) & 1 && row.lower.includes(words));
    const id = address.get("problem");
    const named = this.found.findIndex((row) => row.id === id);
    this.current = Math.max(0, named);
    for (const button of document.querySelectorAll("[data-filter]"))
      button.setAttribute("aria-pressed", button.dataset.filter === name);
    if (document.activeElement !== byId("search")) byId("search").value = address.get("search");
    this.showList();
    await this.showProblem(named < 0 && id !== "" ? id : "");
  }

  showList() {
    const first = Math.floor(this.current / LIST_LENGTH) * LIST_LENGTH;
    const rows = this.found.slice(first, first + LIST_LENGTH);
    byId("count").textContent = `${this.found.length.toLocaleString("en")} of ${this.index.problems.length.toLocaleString("en")} problems`;
    byId("place").textContent = rows.length ? `${first + 1}–${first + rows.length} of ${this.found.length}` : "";
    byId("previous").disabled = first === 0;
    byId("next").disabled = first + LIST_LENGTH >= this.found.length;
    byId("list").replaceChildren(...rows.map((row, i) => this.listRow(row, first + i)));
    this.keepInView(byId("list"), byId("list").querySelector("[aria-current]"));
  }

  // Moves the list alone, never the page.
  keepInView(list, item) {
    if (item === null) return;
    const above = item.offsetTop < list.scrollTop;
    const below = item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight;
    if (above || below) list.scrollTop = above ? item.offsetTop : item.offsetTop + item.offsetHeight - list.clientHeight;
  }

  listRow(row, place) {
    const share = make("meter", { min: 0, max: row.count, value: row.right, class: "good" });
    const signs = make("span", { class: "signs", title: "greedy, voting, rollouts right" },
      "greedy ", mark(row.greedy), " voting ", mark(row.voting), " ", share, ` ${row.right}/${row.count}`);
    const current = place === this.current ? "true" : null;
    const item = make("li", { "aria-current": current }, make("span", { class: "asked" }, `${row.number}. ${row.question}`), signs);
    item.addEventListener("click", () => this.choose(place));
    return item;
  }

  // `missing`: an id that the list does not have.
  async showProblem(missing) {
    const row = this.found[this.current];
    const held = this.index.problems.some((one) => one.id === missing);
    const notice = missing === "" ? [] : [make("p", { class: "notice" },
      `Problem ${missing} is not ${held ? "among those that the filter and the search let through" : "in this page"}.`)];
    if (row === undefined) return byId("problem").replaceChildren(...notice, make("p", { class: "notice" }, "No problem fits."));
    const entry = (await page(row.page))[row.place];
    if (row !== this.found[this.current]) return; // another one was chosen meanwhile
    byId("problem").replaceChildren(...notice, ...problemView(row, entry, this.index));
  }

  choose(place) {
    if (place >= 0 && place < this.found.length) address.set({ problem: this.found[place].id }, true);
  }

  turn(pages) {
    const first = (Math.floor(this.current / LIST_LENGTH) + pages) * LIST_LENGTH;
    this.choose(Math.max(0, first));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.tagName === "INPUT") return event.key === "Escape" ? event.target.blur() : undefined;
    const inList = event.target === byId("list");
    const steps = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) };
    if (event.key === "/") byId("search").focus();
    else if (event.key in steps) this.choose(this.current + steps[event.key]);
    else return;
    event.preventDefault();
  }
}

if (byId("index") !== null)
  readIndex().then((index) => new Browser(index).show()).then(() => {
    if (address.get("problem") !== "") byId("problems").scrollIntoView();
    document.body.dataset.ready = "true";
  });
