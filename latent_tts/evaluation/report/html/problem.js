"use strict";
// One problem: what every strategy chose, how the rollouts voted, and the rollouts themselves.

const BAR = 5;
const BAR_HEIGHT = 26;

const shown = (answer) => (answer === null ? "no answer" : String(answer));
const mark = (right) => make("span", { class: right ? "right" : "wrong" }, right ? "✓" : "✗");
const total = (scores) => scores.reduce((sum, score) => sum + score, 0);

function problemView(row, entry, index) {
  const n = entry.answers.length;
  return [
    make("h3", {}, `Problem ${row.number} `, make("code", {}, row.id)),
    make("p", { class: "question" }, row.question),
    make("p", { class: "gold" }, "gold answer ", make("b", {}, shown(row.gold)), ` · ${row.right} of ${n} rollouts right`),
    make("div", { class: "side" }, choicesTable(entry, index), votesTable(entry)),
    rolloutsTable(entry),
    make("p", { class: "hint" }, costs(entry)),
  ];
}

function simpleTable(id, header, rows) {
  const head = header.map((name) => make("th", { scope: "col" }, make("button", { type: "button" }, name)));
  const table = make("table", { id, class: "sortable" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  makeSortable(table, (column, descending) => sortTable(table, column, descending));
  return make("div", { class: "scroll" }, table);
}

const cell = (content, sort = null, kind = null) => make("td", { "data-sort": sort, class: kind }, content);
const numberCell = (value, text = String(value)) => cell(text, value, "number");

// A strategy's answer, and how many rollouts have it.
function choicesTable(entry, index) {
  const rows = index.strategies.map((label, i) => {
    const [answer, right, text] = entry.chosen[i];
    const behind = entry.answers.filter((other) => other !== null && other === answer).length;
    const name = make("th", { scope: "row", title: text }, label);
    return make("tr", {}, name, cell(shown(answer), answer ?? "", "number"), cell(mark(right), right), numberCell(behind));
  });
  return simpleTable("choices", ["strategy", "chose", "right", "rollouts with it"], rows);
}

// Distinct answers with their votes; a bar is the share of the rollouts.
function votesTable(entry) {
  const groups = new Map();
  entry.answers.forEach((answer, i) => {
    const group = groups.get(answer) ?? { votes: 0, right: entry.right[i] === "1", scores: [] };
    group.votes += 1;
    if (entry.step_scores[i] !== null) group.scores.push(total(entry.step_scores[i]));
    groups.set(answer, group);
  });
  const rows = [...groups].sort((a, b) => b[1].votes - a[1].votes).map(([answer, group]) => {
    const share = make("meter", { min: 0, max: entry.answers.length, value: group.votes, class: group.right ? "good" : "bad" });
    const mean = group.scores.length ? total(group.scores) / group.scores.length : null;
    const score = mean === null ? cell("", "") : numberCell(mean, mean.toFixed(2));
    return make("tr", {}, cell(shown(answer), answer ?? "", "number"), cell(mark(group.right), Number(group.right)),
      cell(make("span", { class: "votes" }, share, ` ${group.votes}`), group.votes), score);
  });
  return simpleTable("votes", ["answer", "right", "votes", "mean score"], rows);
}

function rolloutsTable(entry) {
  const scored = entry.step_scores.some((scores) => scores !== null);
  const extent = Math.max(1e-9, ...entry.step_scores.flat().map((score) => Math.abs(score ?? 0)));
  const rows = entry.answers.map((answer, i) => {
    const scores = entry.step_scores[i];
    const right = entry.right[i] === "1";
    const said = entry.finite[i] === "1" ? entry.texts[i] : `${entry.texts[i]} (not finite)`;
    const cells = [numberCell(i + 1), cell(shown(answer), answer ?? "", "number"), cell(mark(right), Number(right))];
    if (scored) cells.push(numberCell(total(scores), total(scores).toFixed(2)), cell(bars(scores, extent), total(scores)));
    cells.push(numberCell(entry.num_latents[i]), cell(said, null, "text"));
    return make("tr", {}, ...cells);
  });
  const scores = scored ? ["score", "step scores"] : [];
  return simpleTable("rollouts", ["rollout", "answer", "right", ...scores, "thoughts", "text"], rows);
}

// Step scores as bars up and down from 0, all rollouts of the problem to one scale.
function bars(scores, extent) {
  const middle = BAR_HEIGHT / 2;
  const width = Math.max(1, scores.length) * BAR;
  const path = (sign) => scores.map((score, t) =>
    score * sign > 0 ? `M${t * BAR + 2} ${middle}V${(middle - (score / extent) * middle).toFixed(1)}` : "").join("");
  const numbers = make("title", {}, scores.map((score, t) => `${t + 1}: ${score}`).join("\n"));
  return make("svg", { class: "bars", width, height: BAR_HEIGHT, role: "img", "aria-label": `step scores ${scores.join(", ")}` },
    numbers, make("line", { x1: 0, x2: width, y1: middle, y2: middle }),
    make("path", { d: path(1), class: "up" }), make("path", { d: path(-1), class: "down" }));
}

function costs(entry) {
  const steps = entry.token_steps;
  const known = entry.diversity.filter((value) => value !== null);
  const spread = known.length ? ` · mean cosine distance of the latents ${(total(known) / known.length).toFixed(3)}` : "";
  return `token steps: rollouts ${steps.rollouts}, scores ${steps.reward}, greedy ${steps.greedy}${spread}` +
    " · score: the sum of the step scores, which are shown to 4 digits";
}
