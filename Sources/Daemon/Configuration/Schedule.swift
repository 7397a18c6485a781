import FoundationEssentials
import Glibc

/// When jobs are worked on: windows of the week, in the machine's local time. Without any it is always.
public struct Schedule: Sendable, Equatable {
  /// From a minute of some days to another minute, which is the next day's if it is not later.
  public struct Window: Sendable, Equatable {
    /// The days on which it begins, 0 is Monday.
    let days: Set<Int>
    /// Minutes since midnight; the end may be 1,440.
    let start: Int
    let end: Int

    /// Reads `22:00-06:00`, `sat,sun 00:00-24:00` or `mon-fri 20:00-07:30`; nil if it is none.
    init?(_ text: String) {
      let words = text.lowercased().split(separator: " ", omittingEmptySubsequences: true)
      guard let hours = words.last, words.count <= 2 else { return nil }
      let times = hours.split(separator: "-", omittingEmptySubsequences: false).map(Self.minute)
      guard times.count == 2, let start = times[0], let end = times[1], start != end, start < Self.day else {
        return nil
      }
      (self.start, self.end) = (start, end)
      guard words.count == 2 else {
        days = Set(0..<7)
        return
      }
      var days: Set<Int> = []
      for part in words[0].split(separator: ",", omittingEmptySubsequences: false) {
        let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { name in
          Self.dayNames.firstIndex { $0 == name }
        }
        guard let first = ends[0], let last = ends[ends.count - 1], ends.count <= 2 else { return nil }
        // From Saturday to Monday goes over the week's end.
        for day in first...(last < first ? last + 7 : last) { days.insert(day % 7) }
      }
      self.days = days
    }

    private static let day = 1_440
    static let dayNames = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

    /// `06:30` as minutes.
    private static func minute(_ text: Substring) -> Int? {
      let parts = text.split(separator: ":", omittingEmptySubsequences: false)
      guard parts.count == 2, parts.allSatisfy({ (1...2).contains($0.count) && $0.allSatisfy(\.isNumber) }),
        let hour = Int(parts[0]), let minute = Int(parts[1]), minute < 60, hour * 60 + minute <= day
      else { return nil }
      return hour * 60 + minute
    }

    func contains(weekday: Int, minute: Int) -> Bool {
      if end > start { return days.contains(weekday) && minute >= start && minute < end }
      return days.contains(weekday) && minute >= start || days.contains((weekday + 6) % 7) && minute < end
    }

    static func clock(_ minute: Int) -> String {
      let (hour, rest) = minute.quotientAndRemainder(dividingBy: 60)
      return "\(hour < 10 ? "0" : "")\(hour):\(rest < 10 ? "0" : "")\(rest)"
    }

    var text: String {
      let hours = "\(Self.clock(start))-\(Self.clock(end))"
      if days.count == 7 { return hours }
      return days.sorted().map { Self.dayNames[$0] }.joined(separator: ",") + " " + hours
    }
  }

  public var windows: [Window]

  public init(_ windows: [Window] = []) { self.windows = windows }

  /// A moment on the machine's clocks.
  struct LocalTime: Equatable {
    /// 0 is Monday.
    let weekday: Int
    /// Since midnight.
    let minute: Int

    init(weekday: Int, minute: Int) { (self.weekday, self.minute) = (weekday, minute) }

    /// - Parameter time: in seconds since 1970
    init(_ time: Double) {
      var seconds = time_t(time)
      var parts = unsafe tm()
      unsafe localtime_r(&seconds, &parts)
      unsafe self.init(
        weekday: (Int(parts.tm_wday) + 6) % 7, minute: Int(parts.tm_hour) * 60 + Int(parts.tm_min))
    }
  }

  /// A moment of the coming week as people say it: `22:00`, or `Mon 22:00` if it is not within a day.
  /// - Parameter now: in seconds since 1970, as is `time`
  public static func clock(_ time: Double, now: Double = Date().timeIntervalSince1970) -> String {
    guard time.isFinite, abs(time) < 1e11 else { return "an unknown time" }
    let local = LocalTime(time)
    let hours = Window.clock(local.minute)
    if abs(time - now) < 86_400 { return hours }
    return "\(Window.dayNames[local.weekday].capitalized) \(hours)"
  }

  func isOpen(at time: LocalTime) -> Bool {
    windows.isEmpty || windows.contains { $0.contains(weekday: time.weekday, minute: time.minute) }
  }

  /// When it opens next, if it is closed; nil while it is open, or if it never opens.
  ///
  /// It looks at every minute of the coming week: a clock that is put forward or back is then no matter.
  /// - Parameters:
  ///   - time: in seconds since 1970
  ///   - local: the machine's clocks at such a time
  func nextOpening(after time: Double, local: (Double) -> LocalTime = { LocalTime($0) }) -> Double? {
    if isOpen(at: local(time)) { return nil }
    let minute = (time / 60).rounded(.down) * 60
    return (1...8 * 1_440).lazy.map { minute + Double($0) * 60 }.first { isOpen(at: local($0)) }
  }
}
