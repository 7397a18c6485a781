import ArgumentParser
import Daemon

@main
struct QuanteasedCommand: ParsableCommand {
  func run() throws {}
}
