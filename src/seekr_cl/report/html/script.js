"use strict";
// Filters, the list of sections, and reloading of a page about a run that still goes on. Works without it, all shown.
(() => {
  const contents = document.getElementById("contents");
  for (const heading of document.querySelectorAll("h2[data-contents], details.run > summary > h2")) {
    const link = document.createElement("a");
    link.href = "#" + heading.id;
    link.textContent = heading.textContent;
    const item = document.createElement("li");
    item.append(link);
    contents.append(item);
  }

  // A link into a folded run unfolds it.
  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const run = target && target.closest("details.run");
    if (run) {
      run.open = true;
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", unfold);
  unfold();

  for (const section of document.querySelectorAll("[data-examples]")) {
    const form = section.querySelector("form");
    if (!form) continue;
    const count = section.querySelector("[data-count]");
    const examples = [...section.querySelectorAll(".example")].map((element) => ({
      element,
      text: element.querySelector("dl").textContent.toLowerCase(),
    }));
    const value = (name) => form.querySelector(`[data-filter="${name}"]`).value;
    const more = section.querySelector("[data-more]");
    const page = 12;
    let room = page;
    const apply = () => {
      const words = value("text").toLowerCase().trim();
      let shown = 0;
      for (const { element, text } of examples) {
        const fits =
          (!words || text.includes(words)) &&
          (!value("task") || element.dataset.task === value("task")) &&
          (!value("change") || element.dataset.change === value("change"));
        shown += fits;
        element.hidden = !fits || shown > room;
      }
      count.textContent = `${shown} of ${examples.length} examples`;
      more.hidden = shown <= room;
      more.textContent = `Show ${Math.min(page * 2, shown - room)} more`;
    };
    const anew = () => {
      room = page;
      apply();
    };
    more.addEventListener("click", () => {
      const before = room;
      room += page * 2;
      apply();
      // A key press goes on where the new ones begin.
      const shown = examples.filter(({ element }) => !element.hidden);
      if (shown[before]) {
        shown[before].element.tabIndex = -1;
        shown[before].element.focus();
      }
    });
    form.addEventListener("input", anew);
    form.addEventListener("change", anew);
    form.addEventListener("reset", () => setTimeout(anew));
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // Printed whole: what is folded on a screen is unfolded on paper.
  const folded = [];
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      folded.push(details);
      details.open = true;
    }
  });
  window.addEventListener("afterprint", () => {
    for (const details of folded.splice(0)) details.open = false;
  });

  const reload = document.getElementById("reload");
  if (reload) {
    setInterval(() => {
      const busy = document.activeElement && document.activeElement.matches("input[type=search], select");
      if (reload.checked && !busy) location.reload();
    }, 1000 * Number(reload.dataset.seconds));
  }
})();
