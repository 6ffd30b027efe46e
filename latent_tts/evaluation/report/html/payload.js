"use strict";
// The problems lie in the page as compressed blocks. The index, what the list needs, is taken apart once; of the pages, which hold
// rollouts, one at a time, and the last few are kept.

const KEPT_PAGES = 8;
const pages = new Map();

async function unpacked(name) {
  const packed = Uint8Array.from(atob(byId(name).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

function page(number) {
  const found = pages.get(number) ?? unpacked(`page-${number}`);
  pages.delete(number);
  pages.set(number, found);
  if (pages.size > KEPT_PAGES) pages.delete(pages.keys().next().value);
  return found;
}

// The rows of the index as objects; `lower` is what is searched.
async function readIndex() {
  const index = await unpacked("index");
  index.problems = index.problems.map(([number, id, question, gold, mask, right, count, greedy, voting, page, place]) => ({
    number, id, question, gold, mask, right, count, greedy, voting, page, place,
    lower: `${id}\n${question}`.toLowerCase(),
  }));
  return index;
}
