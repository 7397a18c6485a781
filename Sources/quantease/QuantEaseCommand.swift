import ArgumentParser
import Decoder
import Evaluation
import Export
import Pipeline
import ProgramSupport

@main
struct QuantEaseCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "quantease",
    abstract: "Quantizes language-model checkpoints layer by layer, out of core.",
    discussion: """
      A model goes through in three commands:

        quantease plan MODEL
        quantease quantize MODEL --output DIR --calibration text.txt
        quantease eval DIR --against MODEL --text other.txt

      MODEL is a directory as Hugging Face publishes them, with config.json, tokenizer.json and *.safetensors or \
      pytorch_model*.bin, or a GGUF file.
      Known architectures: \(ModelDescription.knownModelTypes.joined(separator: ", ")).
      """,
    version: Producer.version,
    groupedSubcommands: [
      CommandGroup(
        name: "Models",
        subcommands: [
          QuantizeCommand.self, EvaluateCommand.self, InspectCommand.self, PlanCommand.self,
          DevicesCommand.self,
        ]),
      CommandGroup(
        name: "The daemon quanteased",
        subcommands: [
          StatusCommand.self, SubmitCommand.self, WhyCommand.self, HistoryCommand.self, RetryCommand.self,
          CancelCommand.self, PauseCommand.self, ResumeCommand.self, FirstCommand.self, CleanCommand.self,
          VerifyCommand.self,
        ]),
    ])

  static func main() {
    runProgram(report: Console.error) {
      $0 is EvaluationError ? 65 : sysexit(of: $0) ?? sysexit(ofDaemon: $0)
    }
  }
}
