// The prior that the user chose: a word, or a share for each class.
const select = document.getElementById("prior");
const shares = document.getElementById("shares");

export function showClasses(classes) {
  const fields = classes.map((label) => {
    const field = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "number", min: "0", max: "100", step: "any", name: label });
    input.value = (100 / classes.length).toFixed(1);
    field.append(label, input);
    return field;
  });
  shares.querySelector(".fields").replaceChildren(...fields);
}

// "train", "uniform" or { label: share }, summing to one.
export function chosenPrior() {
  if (select.value !== "explicit") return select.value;
  const inputs = [...shares.querySelectorAll("input")];
  const total = inputs.reduce((sum, input) => sum + Number(input.value), 0);
  if (!(total > 0)) throw new Error("Give at least one emotion a share above 0.");
  return Object.fromEntries(inputs.map((input) => [input.name, Number(input.value) / total]));
}

select.addEventListener("change", () => { shares.hidden = select.value !== "explicit"; });
