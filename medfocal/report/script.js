// Sorts and filters the tables and the pictures of the page. Without it the page is whole, in the order of the files.
(() => {
  "use strict";
  const ROWS = 200; // on the screen at a time: ten thousand rows laid out at once would make every click wait
  const tidy = (text) => text.normalize("NFC").toLowerCase();

  // The value of a cell to sort by; undefined has none and always comes last.
  const valueOf = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    if (text === "") return null;
    const value = Number(text);
    return Number.isNaN(value) ? text : value;
  };
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * order(String(a), String(b));
  };

  const makeTable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows].filter((row) => row.cells.length === heads.length);
    const [form, count, pages] = ["filter", "count", "pages"].map((part) => document.getElementById(`case-${part}`));
    const keys = rows.map((row) => ({
      row,
      text: tidy(`${row.cells[0].textContent}\n${row.cells[1].textContent}`),
      values: [...row.cells].map(valueOf),
    }));
    const [LESIONS, MISSED, FALSE] = [2, 4, 5];
    const kinds = {
      "": () => true,
      missed: (values) => values[MISSED] > 0,
      false: (values) => values[FALSE] > 0,
      free: (values) => values[LESIONS] === 0,
    };
    let found = keys;
    let first = 0;

    const draw = (from = 0, rowsAtOnce = ROWS) => {
      first = from;
      const last = Math.min(first + rowsAtOnce, found.length);
      body.replaceChildren(...found.slice(first, last).map((key) => key.row));
      pages.hidden = found.length <= rowsAtOnce;
      pages.querySelector("span").textContent = `Rows ${first + 1} to ${last} of ${found.length}`;
      pages.querySelector("[name=before]").disabled = first === 0;
      pages.querySelector("[name=after]").disabled = last === found.length;
    };
    const filter = () => {
      const text = tidy(form.elements.text.value.trim());
      const kind = kinds[form.elements.kind.value];
      found = keys.filter((key) => key.text.includes(text) && kind(key.values));
      count.textContent = `${found.length} of ${keys.length} ${keys.length === 1 ? "case" : "cases"}`;
      draw();
    };
    const sort = (column) => {
      const rising = heads[column].getAttribute("aria-sort") !== "ascending";
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
      keys.sort((a, b) => compare(a.values[column], b.values[column], rising ? 1 : -1));
      filter();
    };

    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(column));
      head.append(button);
    });
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    pages.querySelector("[name=before]").addEventListener("click", () => draw(Math.max(0, first - ROWS)));
    pages.querySelector("[name=after]").addEventListener("click", () => draw(first + ROWS));
    // On paper there is no button to press for the rest.
    window.addEventListener("beforeprint", () => draw(0, found.length));
    window.addEventListener("afterprint", () => draw());
    filter();
  };

  const makeGallery = (list) => {
    const form = document.getElementById("finding-filter");
    const count = document.getElementById("finding-count");
    const listed = [...list.children];
    const orders = {
      "": () => 0,
      "size-": (a, b) => b.dataset.size - a.dataset.size,
      "size+": (a, b) => a.dataset.size - b.dataset.size,
      "confidence-": (a, b) => b.dataset.confidence - a.dataset.confidence,
      "confidence+": (a, b) => a.dataset.confidence - b.dataset.confidence,
    };
    const filter = () => {
      const { kind, text } = form.elements;
      const wanted = tidy(text.value.trim());
      let shown = 0;
      for (const finding of listed) {
        const fits = (!kind.value || finding.dataset.kind === kind.value) && tidy(finding.dataset.case).includes(wanted);
        finding.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${listed.length} shown`;
    };
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", filter);
    form.elements.order.addEventListener("change", () => {
      list.replaceChildren(...[...listed].sort(orders[form.elements.order.value]));
    });
    // A link from the table of cases must reach its finding, whatever is filtered.
    const reach = () => {
      const finding = document.getElementById(location.hash.slice(1));
      if (!finding || !finding.hidden) return;
      form.reset();
      filter();
      finding.scrollIntoView();
    };
    window.addEventListener("hashchange", reach);
    filter();
  };

  makeTable(document.getElementById("case-table"));
  const findings = document.getElementById("findings");
  if (findings) makeGallery(findings);
})();
