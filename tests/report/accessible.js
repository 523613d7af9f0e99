// Serious faults of accessibility, tables that do not sort, and a page that scrolls sideways: their number and text become the page's title.
const faults = [];
for (const folded of document.querySelectorAll("details")) folded.open = true;
for (const button of document.querySelectorAll("table.sortable th button")) {
  const head = button.parentElement, column = () => [...head.closest("table").tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent);
  button.click();
  const rises = column().every((cell, row, all) => !row || (isNaN(cell) ? all[row - 1].localeCompare(cell) <= 0 : all[row - 1] - cell <= 0));
  if (!rises || head.ariaSort !== "ascending") faults.push(`does not sort: ${button.textContent}`);
}
const number = text => text.match(/[\d.]+/g).map(Number);
const solid = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = number(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const light = colour => {
  const [red, green, blue] = colour.slice(0, 3).map(part => (part /= 255) <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const contrast = (one, other) => {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
if (wide > 0) faults.push(`the page is ${wide} pixels too wide`);
if (!document.documentElement.lang) faults.push("no language");
if (document.querySelectorAll("main").length !== 1 || document.querySelectorAll("h1").length !== 1) faults.push("not one main with one h1");
let before = 0;
for (const head of document.querySelectorAll("h1, h2, h3, h4")) {
  const level = Number(head.tagName[1]);
  if (level > before + 1) faults.push(`h${level} after h${before}: ${head.textContent}`);
  before = level;
}
for (const image of document.querySelectorAll("img")) if (!image.hasAttribute("alt")) faults.push("a picture without alt");
for (const drawing of document.querySelectorAll("svg[role=img]")) if (!drawing.querySelector(":scope > title")?.textContent) faults.push("a drawing without title");
for (const head of document.querySelectorAll("th")) if (!head.textContent.trim() || !head.scope) faults.push("a head of a column without text or scope");
for (const control of document.querySelectorAll("button, summary, a")) if (!control.textContent.trim()) faults.push("a control without a name");
const ids = [...document.querySelectorAll("[id]")].map(each => each.id);
if (new Set(ids).size < ids.length) faults.push("an id twice");
for (const box of document.querySelectorAll("*")) {
  const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX) && box.scrollWidth > box.clientWidth;
  if (scrolls && box.tabIndex < 0) faults.push(`what scrolls cannot be reached by keys: ${box.className || box.tagName}`);
}
for (const element of document.querySelectorAll("main *:not(svg *)")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility()) continue;
  const found = contrast(number(getComputedStyle(element).color), solid(element));
  if (found < 4.5) faults.push(`contrast ${found.toFixed(1)}: ${element.textContent.slice(0, 40)}`);
}
document.title = `${faults.length} faults${faults.length ? ": " + faults.join("; ") : ""}`;
