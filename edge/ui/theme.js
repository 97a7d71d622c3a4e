// A classic script in <head>: the chosen theme stands before the first paint, so nothing flashes.
(() => {
  const themes = ["system", "light", "dark"];
  const root = document.documentElement;

  /** @param {string} theme one of themes; "system" follows the operating system */
  function apply(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (!button) return;
    button.title = `Theme: ${theme}`;
    button.setAttribute("aria-label", button.title);
  }

  let theme = localStorage.getItem("atelier.theme") ?? "system";
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    apply(theme);
    document.getElementById("theme")?.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length] ?? "system";
      localStorage.setItem("atelier.theme", theme);
      apply(theme);
    });
  });
})();
