// An RGB image: read from a PPM file, and resized as Pillow's bilinear filter does.
//
// The results are equal, except for tall images: Pillow 13 takes columns before rows where that is faster, and values
// may then differ by 1, as each pass rounds to 8 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int width, height;
    std::vector<std::uint8_t> pixels;  // red, green, blue; row by row
};

// The next number in the header of a PPM file, after white space and comments.
inline int header_number(std::istream& file) {
    for (file >> std::ws; file.peek() == '#'; file >> std::ws) {
        std::string comment;
        std::getline(file, comment);
    }
    int number = 0;
    if (!(file >> number) || number < 1 || number > 65535) throw std::runtime_error("not a PPM file");
    return number;
}

// Reads a binary PPM file (P6) of 8 bits.
inline Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("no such file");
    char magic[2] = {};
    if (!file.read(magic, 2) || magic[0] != 'P' || magic[1] != '6') throw std::runtime_error("not a binary PPM file (P6)");
    Image image;
    image.width = header_number(file);
    image.height = header_number(file);
    if (header_number(file) != 255) throw std::runtime_error("expected 8 bits per channel");
    file.get();  // one white-space character ends the header
    image.pixels.resize(std::size_t(3) * image.width * image.height);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), std::streamsize(image.pixels.size())))
        throw std::runtime_error("truncated");
    return image;
}

// Which pixels of a line contribute to one pixel of the resized line: weights[i] is that of pixel first + i.
struct Window {
    int first;
    std::vector<std::int32_t> weights;
};

constexpr int FRACTION = 22;  // bits after the point of a weight

inline std::vector<Window> windows(int from, int to) {
    const double scale = double(from) / to;
    const double support = std::max(scale, 1.0);  // when shrinking, the triangle widens: this is the antialiasing
    std::vector<Window> result;
    for (int i = 0; i < to; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(0, int(centre - support + 0.5));
        const int last = std::min(from, int(centre + support + 0.5));
        std::vector<double> triangle;
        double sum = 0;
        for (int x = first; x < last; ++x) {
            triangle.push_back(std::max(0.0, 1 - std::abs((x - centre + 0.5) * (1 / support))));
            sum += triangle.back();
        }
        Window window{first, {}};
        for (double weight : triangle) window.weights.push_back(std::int32_t(0.5 + weight / sum * (1 << FRACTION)));
        result.push_back(window);
    }
    return result;
}

// Resizes to (width, height): rows first, rounded to 8 bits, then columns.
inline Image resized(const Image& image, int width, int height) {
    const auto rounded = [](std::int32_t sum) { return std::uint8_t(std::clamp(sum >> FRACTION, 0, 255)); };
    const std::int32_t half = 1 << (FRACTION - 1);
    Image wide{width, image.height, std::vector<std::uint8_t>(std::size_t(3) * width * image.height)};
    const auto across = windows(image.width, width), down = windows(image.height, height);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) {
                std::int32_t sum = half;
                const std::uint8_t* from = &image.pixels[3 * (std::size_t(y) * image.width + across[x].first) + c];
                for (std::size_t i = 0; i < across[x].weights.size(); ++i) sum += from[3 * i] * across[x].weights[i];
                wide.pixels[3 * (std::size_t(y) * width + x) + c] = rounded(sum);
            }
    Image result{width, height, std::vector<std::uint8_t>(std::size_t(3) * width * height)};
    const std::size_t line = std::size_t(3) * width;
    for (int y = 0; y < height; ++y)
        for (std::size_t x = 0; x < line; ++x) {
            std::int32_t sum = half;
            const std::uint8_t* from = &wide.pixels[down[y].first * line + x];
            for (std::size_t i = 0; i < down[y].weights.size(); ++i) sum += from[i * line] * down[y].weights[i];
            result.pixels[y * line + x] = rounded(sum);
        }
    return result;
}
