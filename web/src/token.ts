/** The token that a server may ask for, kept until the tab is closed. */
import { h } from "./dom";

const TOKEN_KEY = "geoclip-token";

let token = storedToken();
let asking: Promise<void> | null = null;

export const currentToken = (): string | null => token;

function storedToken(): string | null {
  try {
    return sessionStorage.getItem(TOKEN_KEY);
  } catch {
    return null; // storage is not allowed
  }
}

/** Asks the user for another token than the one that the server rejected; null if none was sent. */
export async function replaceToken(rejected: string | null): Promise<void> {
  if (token !== rejected) return; // another request has asked already
  asking ??= askForToken(rejected !== null).then((entered) => {
    asking = null;
    token = entered;
    try {
      sessionStorage.setItem(TOKEN_KEY, entered);
    } catch {
      // asked for again after a reload
    }
  });
  await asking;
}

function askForToken(wasRejected: boolean): Promise<string> {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
    const dialog = h(
      "dialog",
      { class: "token", "aria-labelledby": "token-title" },
      h(
        "form",
        {
          method: "dialog",
          onsubmit: () => {
            resolve(input.value.trim());
            dialog.remove();
          },
        },
        h("h2", { id: "token-title" }, "This server needs a token"),
        wasRejected && h("p", { class: "error small", role: "alert" }, "The server did not accept this token."),
        h("label", { for: "token" }, "Token"),
        input,
        h("button", { type: "submit", class: "button" }, "Continue"),
      ),
    );
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
}
