const word = document.getElementById("verdict");
word.classList.add(facts.verdict);
word.textContent = `${MARKS[facts.verdict] || ""} ${facts.verdict.replace("_", " ")}`;
main.replaceChildren();
(data.kind === "run" ? runReport : locateReport)();
