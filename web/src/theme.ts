/** Light or dark: as the system is, until someone chooses. */
import { h, icon } from "./dom";

type Choice = "auto" | "light" | "dark";
const NEXT: Record<Choice, Choice> = { auto: "light", light: "dark", dark: "auto" };
const WORDS: Record<Choice, string> = { auto: "Colours as the system has them", light: "Light colours", dark: "Dark colours" };
const KEY = "geoclip-colours";

const system = matchMedia("(prefers-color-scheme: dark)");

function kept(): Choice {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : "auto";
  } catch {
    return "auto"; // a page from disk may have no storage
  }
}

export function themeToggle(changed: (dark: boolean) => void): HTMLElement {
  let choice = kept();
  const button = h("button", { type: "button", class: "tool", onclick: () => choose(NEXT[choice]) });
  const apply = (): void => {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset["theme"] = dark ? "dark" : "light";
    button.replaceChildren(icon(choice === "auto" ? "auto" : choice === "dark" ? "moon" : "sun"));
    button.title = WORDS[choice];
    button.setAttribute("aria-label", `${WORDS[choice]}. Change.`);
    changed(dark);
  };
  const choose = (next: Choice): void => {
    choice = next;
    try {
      localStorage.setItem(KEY, next);
    } catch {
      // kept until the page is closed, then
    }
    apply();
  };
  system.addEventListener("change", apply);
  apply();
  return button;
}
