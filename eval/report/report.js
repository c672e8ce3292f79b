// The filters of llava-pose report: a case is shown where it fits all that is chosen.
const value = (name) => document.getElementById(name).value;
const cases = [...document.querySelectorAll("#cases figure")];
function filter() {
  const least = parseFloat(value("least")) || 0, most = value("most") === "" ? 180 : parseFloat(value("most"));
  let shown = 0;
  for (const one of cases) {
    const { system, category, kinds, error } = one.dataset;
    one.hidden = !(
      ["", system].includes(value("system")) && ["", category].includes(value("category")) &&
      (value("kind") === "" || kinds.split(", ").includes(value("kind"))) && +error >= least && +error <= most
    );
    shown += !one.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${cases.length} answers`;
}
const order = { file: (a, b) => 0, worst: (a, b) => b.dataset.error - a.dataset.error, best: (a, b) => a.dataset.error - b.dataset.error };
function sort() {
  document.getElementById("cases").append(...[...cases].sort(order[value("order")]));
}
for (const name of ["system", "category", "kind", "least", "most"]) document.getElementById(name).addEventListener("input", filter);
document.getElementById("order").addEventListener("input", sort);
document.getElementById("filters").addEventListener("reset", () => setTimeout(() => { filter(); sort(); }));
filter();
