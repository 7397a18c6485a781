/// Experts of a model as a picture, layers downwards and experts to the right: the darker, the more of something.
struct ExpertMap {
  /// One expert of a layer.
  struct Cell {
    let layer: Int
    let expert: Int
    let tokens: Int
    /// The mean relative error of its linears.
    let error: Double
  }

  /// What is shown.
  enum Measure: String {
    case error = "Error"
    case tokens = "Tokens"

    func value(of cell: Cell) -> Double { self == .error ? cell.error : Double(cell.tokens) }

    func text(_ value: Double) -> String { self == .error ? percent(value) : grouped(Int(value)) }
  }

  /// Shades, the first for the least.
  static let shades = 8
  /// With more cells than this, they are told apart by their place alone: a title each would make a page of megabytes.
  private static let mostTitles = 4_096

  let cells: [Cell]
  private let layers: [Int]
  private let experts: Int

  /// nil for a model without experts.
  init?(linears: [Report.Linear]) {
    var errors: [[Int]: [Double]] = [:]
    var tokens: [[Int]: Int] = [:]
    for linear in linears {
      guard let expert = linear.expert, let reached = linear.tokens else { continue }
      errors[[linear.layer, expert], default: []].append(linear.relativeError)
      tokens[[linear.layer, expert]] = reached
    }
    cells = errors.map { place, errors in
      Cell(
        layer: place[0], expert: place[1], tokens: tokens[place] ?? 0,
        error: errors.reduce(0, +) / Double(errors.count))
    }.sorted { ($0.layer, $0.expert) < ($1.layer, $1.expert) }
    guard !cells.isEmpty else { return nil }
    layers = Set(cells.map(\.layer)).sorted()
    experts = cells.reduce(0) { max($0, $1.expert + 1) }
  }

  /// The tokens of the expert that fewest reach, of the one in the middle, and of the one that most reach.
  var tokensOfExperts: (fewest: Int, median: Int, most: Int) {
    let sorted = cells.map(\.tokens).sorted()
    return (sorted[0], sorted[sorted.count / 2], sorted[sorted.count - 1])
  }

  var idleExperts: Int { cells.count { $0.tokens == 0 } }

  func svg(_ measure: Measure) -> String {
    let (left, top, width) = (64.0, 8.0, 688.0)
    let side = width / Double(experts)
    let height = min(max(side, layers.count <= 24 ? 16 : 4), 24)
    // Numbers do not touch one another.
    let tickRows = max(1, Int((18 / height).rounded(.up)))
    let bottom = top + height * Double(layers.count)
    let rows = Dictionary(uniqueKeysWithValues: layers.enumerated().map { ($1, $0) })
    let shade = shade(measure)
    let squares = cells.map { cell in
      let x = fixed(left + side * Double(cell.expert), 2)
      let y = fixed(top + height * Double(rows[cell.layer] ?? 0), 2)
      let kind = cell.tokens == 0 ? "idle" : "shade-\(shade(cell))"
      let square =
        "<rect class=\"\(kind)\" x=\"\(x)\" y=\"\(y)\" width=\"\(fixed(side, 2))\" height=\"\(fixed(height, 2))\""
      guard cells.count <= Self.mostTitles else { return square + "/>" }
      let title =
        "layer \(cell.layer), expert \(cell.expert): \(grouped(cell.tokens)) tokens, error \(percent(cell.error))"
      return square + "><title>\(escaped(title))</title></rect>"
    }
    let ticks = layers.enumerated().filter { $0.offset % tickRows == 0 }.map { row, layer in
      let y = fixed(top + height * (Double(row) + 0.5), 1)
      return
        "<text class=\"tick\" x=\"\(left - 8)\" y=\"\(y)\" dy=\".35em\" text-anchor=\"end\">\(layer)</text>"
    }
    let ends = [(0, left + side / 2), (experts - 1, left + width - side / 2)].map { expert, x in
      "<text class=\"tick\" x=\"\(fixed(x, 1))\" y=\"\(fixed(bottom + 18, 1))\" text-anchor=\"middle\">\(expert)</text>"
    }
    return """
      <svg class="map" viewBox="0 0 760 \(fixed(bottom + 30, 0))" role="img" \
      aria-label="\(measure.rawValue) per decoder layer and expert">
      \(squares.joined())
      \(ticks.joined())\(ends.joined())
      <text class="label" x="\(fixed(left + width / 2, 1))" y="\(fixed(bottom + 24, 1))" text-anchor="middle">expert</text>
      <text class="label" transform="translate(14 \(fixed((top + bottom) / 2, 1))) rotate(-90)" \
      text-anchor="middle">layer</text>
      </svg>
      """
  }

  /// What the lightest and the darkest shade stand for.
  func ends(_ measure: Measure) -> (least: String, most: String) {
    let range = range(measure)
    return (measure.text(range.lowerBound), measure.text(range.upperBound))
  }

  /// Of experts that some token reaches.
  private func range(_ measure: Measure) -> ClosedRange<Double> {
    let values = cells.filter { $0.tokens > 0 }.map(measure.value(of:)).filter(\.isFinite)
    return (values.min() ?? 0)...(values.max() ?? 0)
  }

  /// Even steps between the least and the most.
  private func shade(_ measure: Measure) -> (Cell) -> Int {
    let range = range(measure)
    let width = range.upperBound - range.lowerBound
    return { cell in
      let value = measure.value(of: cell)
      guard width > 0, value.isFinite else { return Self.shades - 1 }
      let share = (value - range.lowerBound) / width
      return min(max(Int(share * Double(Self.shades)), 0), Self.shades - 1)
    }
  }
}
