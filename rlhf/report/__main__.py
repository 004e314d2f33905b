"""python -m rlhf.report"""

from rlhf.report.page import main

if __name__ == "__main__":
    main()
