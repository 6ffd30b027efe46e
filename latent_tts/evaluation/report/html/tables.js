"use strict";
// Tables of class "sortable": a click on a column's name sorts by it, a second one the other way round.

function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent;
  const number = Number(text);
  return text.trim() === "" ? null : Number.isNaN(number) ? text : number;
}

// Empty cells come last either way; equal ones keep the order in which the report has them.
function compareKeys(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.forEach((row, place) => (row.dataset.place ??= place));
  const keyed = rows.map((row) => [sortKey(row, column), Number(row.dataset.place), row]);
  keyed.sort((a, b) => compareKeys(a[0], b[0], descending ? -1 : 1) || a[1] - b[1]);
  body.append(...keyed.map((entry) => entry[2]));
  [...table.tHead.rows[0].cells].forEach((cell, i) =>
    i === column ? cell.setAttribute("aria-sort", descending ? "descending" : "ascending") : cell.removeAttribute("aria-sort"));
}

// Numbers are sorted from the largest down first, names from A up.
function nextOrder(table, column) {
  const now = table.tHead.rows[0].cells[column].getAttribute("aria-sort");
  if (now !== null) return now === "ascending";
  return [...table.tBodies[0].rows].some((row) => typeof sortKey(row, column) === "number");
}

// The heads of a table answer to clicks; `chosen` is told of the order, which stands in the address for the page's own tables.
function makeSortable(table, chosen) {
  [...table.tHead.rows[0].cells].forEach((cell, column) =>
    cell.querySelector("button").addEventListener("click", () => chosen(column, nextOrder(table, column))));
}

function sortByAddress() {
  const [name, column, order] = address.get("sort").split(".");
  const table = name ? byId(name) : null;
  if (table !== null && column in table.tHead.rows[0].cells) sortTable(table, Number(column), order === "desc");
}

for (const table of document.querySelectorAll("table.sortable"))
  makeSortable(table, (column, descending) => address.set({ sort: `${table.id}.${column}.${descending ? "desc" : "asc"}` }));
window.addEventListener("hashchange", sortByAddress);
sortByAddress();
