import Testing

@testable import Daemon

/// When jobs are worked on.
struct ScheduleTests {
  private func window(_ text: String) throws -> Schedule.Window { try #require(Schedule.Window(text)) }

  @Test(arguments: [
    ("22:00-06:00", "22:00-06:00"), ("0:00-24:00", "00:00-24:00"),
    ("Mon-Fri 20:00-7:30", "mon,tue,wed,thu,fri 20:00-07:30"),
    ("sat,sun 00:00-24:00", "sat,sun 00:00-24:00"), ("sat-mon 01:00-02:00", "mon,sat,sun 01:00-02:00"),
    ("mon-sun 9:05-10:00", "09:05-10:00"),
  ])
  func `a window is read and written`(text: String, written: String) throws {
    let window = try window(text)
    #expect(window.text == written)
    #expect(Schedule.Window(written) == window)
  }

  @Test(arguments: [
    "", "22:00", "22-06", "22:00-22:00", "24:00-06:00", "22:60-06:00", "22:00-24:01", "mo 22:00-06:00",
    "22:00-06:00-07:00",
    "mon-tue-wed 22:00-06:00", "mon 22:00 06:00", "+1:00-02:00", "mon, 01:00-02:00", "１:00-02:00x",
  ])
  func `what is no window is refused`(text: String) { #expect(Schedule.Window(text) == nil) }

  @Test func `a window over midnight belongs to the day on which it begins`() throws {
    let window = try window("fri 22:00-06:00")
    let (friday, saturday) = (4, 5)
    #expect(!window.contains(weekday: friday, minute: 21 * 60 + 59))
    #expect(window.contains(weekday: friday, minute: 22 * 60))
    #expect(window.contains(weekday: saturday, minute: 0))
    #expect(window.contains(weekday: saturday, minute: 5 * 60 + 59))
    #expect(!window.contains(weekday: saturday, minute: 6 * 60))
    #expect(!window.contains(weekday: friday, minute: 60))
  }

  /// Clocks that were put forward by an hour at 02:00 of the first day.
  private func local(_ time: Double) -> Schedule.LocalTime {
    var minutes = Int(time) / 60
    if minutes >= 120 { minutes += 60 }
    return Schedule.LocalTime(weekday: minutes / 1_440 % 7, minute: minutes % 1_440)
  }

  @Test func `the next opening is found over days and over a clock that is put forward`() throws {
    #expect(Schedule().nextOpening(after: 0, local: local) == nil)
    let mornings = Schedule([try window("04:00-05:00")])
    // An hour of the night is not there.
    #expect(mornings.nextOpening(after: 30, local: local) == Double(3 * 3_600))
    #expect(mornings.nextOpening(after: 3 * 3_600, local: local) == nil)
    let sundays = Schedule([try window("sun 00:00-01:00")])
    #expect(sundays.nextOpening(after: 0, local: local) == Double(6 * 86_400 - 3_600))
    // What was missed this week is open next week.
    let monday = Schedule([try window("mon 00:00-00:01")])
    #expect(monday.nextOpening(after: 60, local: local) == Double(7 * 86_400 - 3_600))
  }
}
