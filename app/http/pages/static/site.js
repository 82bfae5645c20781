// What the pages do beyond htmx: put items into the sequence, show how a file would be read, send it.
"use strict";

const PREVIEW_BYTES = 256 * 1024; // of a file whose rows are lines: its beginning says how it is laid out
const WHOLE_BYTES = 4 * 1024 * 1024; // of one whose footer says it

const headers = () => JSON.parse(document.body.getAttribute("hx-headers"));

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-add-item]")) addItem();
});
document.addEventListener("change", (event) => {
  const target = event.target;
  if (target.dataset.readInto) readInto(target);
  if (target.form && target.form.id === "job-form") {
    if (target.id === "file") chosenColumns = null;
    if (target.dataset.column !== undefined) chosenColumns = columnsOf(target.form);
    preview(target.form);
  }
});
document.addEventListener("submit", (event) => {
  if (event.target.id !== "job-form") return;
  event.preventDefault();
  submitJob(event.target);
});

function addItem() {
  const domain = document.getElementById("pick-domain").value;
  const item = document.getElementById("pick-item");
  const sequence = document.getElementById("sequence");
  if (!item.value) return item.focus();
  const separator = sequence.value && !sequence.value.endsWith("\n") ? "\n" : "";
  sequence.value += `${separator}${domain}\t${item.value}`;
  item.value = "";
  item.focus();
}

async function readInto(input) {
  const file = input.files[0];
  if (!file) return;
  document.getElementById(input.dataset.readInto).value = await file.slice(0, WHOLE_BYTES).text();
  input.value = "";
}

// What the reader said of the columns; null while it is what was found
let chosenColumns = null;

function columnsOf(form) {
  const named = [];
  for (const select of form.querySelectorAll("[data-column]")) {
    if (select.value) named.push(`${select.value}=${select.dataset.column}`);
  }
  return named.join(",");
}

function jobForm(form, file) {
  const data = new FormData();
  for (const name of ["target_domain", "purpose", "domain"]) {
    if (form.elements[name].value) data.set(name, form.elements[name].value);
  }
  if (chosenColumns) data.set("columns", chosenColumns);
  data.set("file", file, form.elements.file.files[0].name);
  return data;
}

let previews = 0;

async function preview(form) {
  const file = form.elements.file.files[0];
  if (!file) return;
  const number = ++previews;
  const isParquet = (await file.slice(0, 4).text()) === "PAR1";
  const part = isParquet && file.size <= WHOLE_BYTES ? file : file.slice(0, PREVIEW_BYTES);
  const answer = await fetch(form.dataset.preview, {
    method: "POST",
    body: jobForm(form, part),
    headers: { ...headers(), "HX-Request": "true" },
  });
  const text = await answer.text();
  // Only the answer to the latest question counts; it is HTML of our own server, whose every text is escaped there
  if (number === previews) document.getElementById("preview").innerHTML = text;
}

function submitJob(form) {
  const bar = document.getElementById("upload-progress");
  const button = form.querySelector("[type=submit]");
  const request = new XMLHttpRequest();
  request.open("POST", form.dataset.upload);
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  request.upload.onprogress = (event) => {
    bar.hidden = false;
    bar.value = event.total ? event.loaded / event.total : 0;
  };
  request.onloadend = () => {
    button.disabled = false;
    bar.hidden = true;
    const answer = parsed(request.responseText);
    if (request.status === 202) return location.assign(`${form.dataset.shown}/${answer.job_id}`);
    showProblem(answer || { title: "The service did not answer" });
  };
  button.disabled = true;
  request.send(jobForm(form, form.elements.file.files[0]));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function showProblem(problem) {
  const box = document.createElement("div");
  box.className = "problem";
  const title = document.createElement("strong");
  title.textContent = problem.title;
  const detail = document.createElement("p");
  detail.textContent = problem.detail || "";
  box.append(title, detail);
  document.getElementById("job-problem").replaceChildren(box);
}
