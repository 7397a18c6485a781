/// What files say of the program that wrote them.
public enum Producer {
  public static let version = "0.1.0"
}
