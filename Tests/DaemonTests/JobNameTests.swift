import Foundation
import Testing

@testable import Daemon

struct JobNameTests {
  private let time = Date(timeIntervalSince1970: 1_795_475_702)

  @Test(arguments: [
    "llama", "my-model-7b", "-", "--x--", "a b", "modèle-日本", ".x", "20261123T231502Z-00a7-again",
  ])
  func `an identifier gives the drop's name back`(_ name: String) {
    let id = JobName.identifier(for: name, at: time, random: 0xA7)
    #expect(id == "20261123T231502Z-00a7-\(name)")
    #expect(JobName.name(of: id) == name)
  }

  @Test(arguments: ["", "x", "a-b-c", "2026-00a7-x", "20261123T231502Z-a7-x", "20261123T231502Z-00a7"])
  func `what is no identifier is a name`(_ text: String) {
    #expect(JobName.name(of: text) == text)
  }

  @Test(arguments: [0, 1, 0xFF, 0xFFFF] as [UInt16])
  func `chance has four digits`(_ random: UInt16) {
    let id = JobName.identifier(for: "x", at: time, random: random)
    #expect(id.count == 16 + 1 + 4 + 1 + 1)
    #expect(id.split(separator: "-").map { Int($0, radix: 16) }[1] == Int(random))
  }

  @Test(arguments: ["x", "é", "👩‍👩‍👧"])
  func `every file that is named after a job has a possible name`(_ character: Character) {
    let name = String(repeating: character, count: 255 / String(character).utf8.count)
    let id = JobName.identifier(for: name, at: time, random: 7)
    let names = [
      "\(id).0123456789abcdef.activations.mdb-lock", ".cancel.\(id).01234567.tmp",
      "\(id).ranks-0123-100-4194304.01234567-0123456789abc.rank1000.activations.mdb-lock",
    ]
    for name in names { #expect(name.utf8.count <= 255, "\(name)") }
    // Whole characters, and nearly as many as there is room for.
    #expect(name.hasPrefix(JobName.name(of: id)))
    #expect(JobName.name(of: id).utf8.count > 130)
  }

  @Test func `identifiers are in the order of the claims`() {
    let ids = (0..<5).map {
      JobName.identifier(
        for: "x", at: time.addingTimeInterval(Double(70_000 * $0)), random: UInt16(60_000 - 10_000 * $0))
    }
    #expect(ids == ids.sorted())
  }
}
