/** Light or dark theme; follows the system by default. */
import { h, icon } from "./dom";

type Choice = "auto" | "light" | "dark";
const NEXT: Record<Choice, Choice> = { auto: "light", light: "dark", dark: "auto" };
const WORDS: Record<Choice, string> = { auto: "Colours as the system", light: "Light colours", dark: "Dark colours" };
const KEY = "geoclip-colours";

const system = matchMedia("(prefers-color-scheme: dark)");

function storedChoice(): Choice {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : "auto";
  } catch {
    return "auto"; // a file opened from disk may have no storage
  }
}

export function themeToggle(onChange: (dark: boolean) => void): HTMLElement {
  let choice = storedChoice();
  const button = h("button", { type: "button", class: "tool", onclick: () => choose(NEXT[choice]) });
  const apply = (): void => {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset["theme"] = dark ? "dark" : "light";
    button.replaceChildren(icon(choice === "auto" ? "auto" : choice === "dark" ? "moon" : "sun"));
    button.title = WORDS[choice];
    button.setAttribute("aria-label", `${WORDS[choice]}. Change.`);
    onChange(dark);
  };
  const choose = (next: Choice): void => {
    choice = next;
    try {
      localStorage.setItem(KEY, next);
    } catch {
      // not stored
    }
    apply();
  };
  system.addEventListener("change", apply);
  apply();
  return button;
}
