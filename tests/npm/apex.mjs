// Parses an Apex class with the grammar of apex-parser and prints each syntax error: `node apex.mjs FILE`.
import { readFileSync } from "node:fs";
import { ApexErrorListener, ApexParserFactory } from "@apexdevtools/apex-parser";

class Printer extends ApexErrorListener {
  apexSyntaxError(line, column, message) {
    console.error(`${line}:${column}: ${message}`);
    process.exitCode = 1;
  }
}

const parser = ApexParserFactory.createParser(readFileSync(process.argv[2], "utf8"));
parser.removeErrorListeners();
parser.addErrorListener(new Printer());
const unit = parser.compilationUnit();
console.log(unit.getText().length > 0 ? "parsed" : "empty");
